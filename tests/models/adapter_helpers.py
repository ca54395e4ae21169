"""Helpers of the tests of tokenizers: noise, small configs, changed weights."""

from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from tokpipe.config.native_parts import Encoder3DConfig
from tokpipe.config.tokenizer import NativeConfig


def noise(*shape: int, seed: int = 0) -> Tensor:
    """uint8 noise, such as (B, T, H, W, 3)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def randomize(module: nn.Module, seed: int = 0) -> None:
    """Fill every parameter so that activations keep their size and codebooks are spread out."""
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in module.named_parameters():
        if "embedding" in key:
            values = torch.randn(parameter.shape, generator=generator)
        elif parameter.ndim > 1:
            fan_in = parameter[0].numel()
            values = torch.randn(parameter.shape, generator=generator) / fan_in**0.5
        else:
            values = torch.rand(parameter.shape, generator=generator) + 0.5
        parameter.data.copy_(values)


def small_native(quantizer: Any, **changes: Any) -> NativeConfig:
    """Two levels, time halved once; without a decoder unless ``changes`` have one."""
    encoder = Encoder3DConfig(
        ch=32,
        ch_mult=(1, 1),
        num_res_blocks=1,
        z_channels=quantizer.latent_dim,
        temporal_compress_times=2,
    )
    return NativeConfig(**{"encoder": encoder, "quantizer": quantizer, **changes})


def file_of(state: dict[str, Tensor], **changes: Tensor | None) -> bytes:
    """A safetensors file of ``state``; a change to None drops a key. ``__`` means a dot."""
    changed = {key.replace("__", "."): value for key, value in changes.items()}
    merged = {key: value for key, value in {**state, **changed}.items() if value is not None}
    return safetensors.torch.save({key: value.contiguous() for key, value in merged.items()})
