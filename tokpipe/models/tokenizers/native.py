"""Tokenizers built from this project's encoder, quantizer and decoder."""

import hashlib
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokpipe.config.native_parts import FSQConfig, GumbelConfig, LFQConfig, QuantizerConfig
from tokpipe.config.tokenizer import NativeConfig
from tokpipe.errors import ConfigError
from tokpipe.models import FSQ, LFQ, EMAVectorQuantizer, GumbelQuantizer, Quantizer, VectorQuantizer
from tokpipe.models.autoencoder_3d import Encoder3D, MOVQDecoder3D, Network3D
from tokpipe.models.operations import Conv3d
from tokpipe.models.streaming import StreamState
from tokpipe.models.tokenizers.base import VideoTokenizer, codes_or_not_finite


class CausalTokenizer(VideoTokenizer):
    """A causal encoder, a quantizer and, if there is one, a decoder, all in turn."""

    encoder: Network3D
    quant_conv: nn.Module
    quantizer: Quantizer
    decoder: Network3D | None
    patch_size = 1

    def latent_of(self, x: Tensor) -> Tensor:
        """(B, 3, T, H, W) in [-1, 1] -> (B, z, t, h, w) for the quantizer. With gradients."""
        return self.quant_conv(self.encoder(self._patched(x)))

    def frames_of(self, vectors: Tensor) -> Tensor:
        """Code vectors (B, z, t, h, w) -> (B, 3, T, H, W), about [-1, 1]. With gradients."""
        return self._unpatched(self._needed(self.decoder)(vectors))

    def _encode(self, x: Tensor) -> Tensor:
        return codes_or_not_finite(self.quantizer, self.latent_of(x))

    def _encode_piece(self, x: Tensor, state: StreamState | None) -> tuple[Tensor, StreamState]:
        latent, after = self.encoder.stream(self._patched(x), state)
        return codes_or_not_finite(self.quantizer, self.quant_conv(latent)), after

    def _decode(self, codes: Tensor) -> Tensor:
        return self.frames_of(self._vectors(codes))

    def _decode_piece(self, codes: Tensor, state: StreamState | None) -> tuple[Tensor, StreamState]:
        floats, after = self._needed(self.decoder).stream(self._vectors(codes), state)
        return self._unpatched(floats), after

    def _vectors(self, codes: Tensor) -> Tensor:
        return self.quantizer.vectors_of(codes).to(self.dtype)

    def _patched(self, x: Tensor, shuffle: Callable[..., Tensor] = F.pixel_unshuffle) -> Tensor:
        """(B, 3, T, H, W) -> (B, 3 p p, T, H/p, W/p): colour, then row, then column of a patch."""
        return x if (p := self.patch_size) == 1 else shuffle(x.transpose(1, 2), p).transpose(1, 2)

    def _unpatched(self, x: Tensor) -> Tensor:
        return self._patched(x, F.pixel_shuffle)


class NativeTokenizer(CausalTokenizer):
    """Causal 3D encoder, quantizer and, if there is one, MoVQ decoder.

    Keys of the state_dict are ``encoder.*``, ``quant_conv.*``, ``quantizer.*`` and ``decoder.*``.
    ``compute_in`` applies to the decoder and most of the encoder. Squares of ``patch_size`` pixels
    become channels before the encoder, by ``pixel_unshuffle``, and pixels after the decoder.
    """

    def __init__(self, config: NativeConfig, *, with_decoder: bool) -> None:
        super().__init__(config.traits)
        self.patch_size = config.patch_size
        self.encoder: Encoder3D = Encoder3D(
            **config.encoder.model_dump(exclude={"kind", "in_channels"}),
            in_channels=config.pixel_channels,
            double_z=False,
            norm=config.norm,
        )
        channels = config.encoder.z_channels, config.quantizer.latent_dim
        self.quant_conv = Conv3d(*channels, 1) if config.quant_conv else nn.Identity()
        self.quantizer = _quantizer(config.quantizer)
        self.decoder: MOVQDecoder3D | None = None
        if with_decoder:
            if config.decoder is None:
                raise ConfigError(
                    "tokenizer: has no decoder section, so its codes cannot become pixels again: "
                    "add the settings and weights of the decoder trained with this encoder"
                )
            self.decoder = MOVQDecoder3D(
                **config.decoder.model_dump(exclude={"kind"}),
                out_ch=config.pixel_channels,
                z_channels=config.quantizer.codebook_dim,
                temporal_compress_times=self.encoder.temporal_stride,
                norm=config.norm,
            )

    def _cast(self, dtype: torch.dtype) -> None:
        self.encoder.compute_in(dtype)
        if self.decoder is not None:
            self.decoder.to(dtype)

    def _input_dtype(self) -> torch.dtype:
        return self.encoder.conv_in.conv.weight.dtype


def _quantizer(config: QuantizerConfig) -> Quantizer:
    if isinstance(config, FSQConfig):
        return FSQ(config.levels, config.dim, config.num_codebooks)
    if isinstance(config, LFQConfig):
        size, groups = config.num_codes, config.num_codebooks
        return LFQ(config.dim, size, num_codebooks=groups, bit_order=config.bit_order)
    size, dim = config.codebook_size, config.codebook_dim
    remap: dict[str, Any] = config.model_dump(include={"remap", "unknown_index"})
    if isinstance(config, GumbelConfig):
        return GumbelQuantizer(config.latent_dim, dim, size, **remap)
    if config.kind == "ema_vq":
        return EMAVectorQuantizer(size, dim, beta=0.25, **remap)
    # The loss of the paper; the published default is a mistake that only old runs need.
    return VectorQuantizer(size, dim, legacy=False, **remap)


def hashed_seed(seed: int, name: object) -> int:
    """A seed for the random numbers called ``name``."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def fill_uniform(parameter: nn.Parameter, bound: float, seed: int, key: str) -> None:
    """Fill a parameter with numbers in [-bound, bound] that only depend on ``seed`` and ``key``.

    Uniform numbers are the generator's bits; normal ones need logarithms, which differ by CPU.
    """
    generator = torch.Generator().manual_seed(hashed_seed(seed, key))
    noise = torch.rand(parameter.shape, generator=generator, dtype=torch.float32)
    parameter.data.copy_(noise.mul_(2 * bound).sub_(bound))


def randomize(tokenizer: nn.Module, seed: int) -> None:
    """Fill matrices so that they keep the variance of their input: latents spread over codes."""
    for key, parameter in tokenizer.named_parameters():
        if parameter.ndim < 2:
            parameter.data.fill_(1.0 if key.endswith("weight") else 0.0)
            continue
        fan_in = 1 if key.startswith("quantizer.") else math.prod(parameter.shape[1:])
        fill_uniform(parameter, math.sqrt(3 / fan_in), seed, key)
