"""What the tests of tokenizers share: noise, and weights with some keys changed."""

from __future__ import annotations

import safetensors.torch
import torch
from torch import Tensor, nn


def noise(*shape: int, seed: int = 0) -> Tensor:
    """uint8 noise, such as (B, T, H, W, 3)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def randomize(module: nn.Module, seed: int = 0) -> None:
    """Fill every parameter so that activations keep about their size, and codebooks are spread."""
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


def file_of(state: dict[str, Tensor], **changes: Tensor | None) -> bytes:
    """A safetensors file of ``state``; a change to None leaves a key out. ``__`` means a dot."""
    changed = {key.replace("__", "."): value for key, value in changes.items()}
    merged = {key: value for key, value in {**state, **changed}.items() if value is not None}
    return safetensors.torch.save({key: value.contiguous() for key, value in merged.items()})
