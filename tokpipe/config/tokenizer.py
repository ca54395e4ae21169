"""The tokenizer: encoder, quantizer, weights. Knows every number that planning needs."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator
from typing_extensions import Self

from tokpipe.config.base import Frozen, Uri


class Encoder3DConfig(Frozen):
    """Causal 3D encoder of the CogVideo VQ-VAE/MoVQ family; names as published."""

    kind: Literal["encoder_3d"] = "encoder_3d"
    ch: PositiveInt = 128
    """Channels of the finest level."""
    ch_mult: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 2, 4, 4)
    """Channels of each level, in multiples of ``ch``; each level but the last halves the size."""
    num_res_blocks: PositiveInt = 2
    """Residual blocks per level."""
    attn_resolutions: tuple[int, ...] = ()
    """Sizes at which attention follows each residual block."""
    resolution: PositiveInt = 256
    """Nominal size: decides at which level ``attn_resolutions`` put attention, nothing else."""
    in_channels: Literal[3] = 3
    z_channels: PositiveInt = 16
    """Channels of the latent, as many as the quantizer takes."""
    temporal_compress_times: Literal[1, 2, 4, 8, 16] = 4
    """Frames per latent frame, after the first."""
    pad_mode: Literal["first", "constant", "reflect"] = "first"
    """What stands before the first frame: repeats of it, zeros, or the frames after it mirrored."""

    @model_validator(mode="after")
    def _published_limits(self) -> Self:
        if bad := [m for m in self.ch_mult if self.ch * m % 32]:
            raise ValueError(
                f"ch={self.ch} times ch_mult={bad[0]} is no multiple of 32, which GroupNorm needs"
            )
        if self.temporal_compress_times > self.spatial_stride:
            raise ValueError(
                f"temporal_compress_times={self.temporal_compress_times} needs more levels than "
                f"the {len(self.ch_mult)} of ch_mult: at most {self.spatial_stride} here"
            )
        return self

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent row and column."""
        return int(2 ** (len(self.ch_mult) - 1))

    @property
    def temporal_stride(self) -> int:
        """Frames per latent frame, after the first."""
        return self.temporal_compress_times


class VQConfig(Frozen):
    """Nearest code vector of a learnt codebook."""

    kind: Literal["vq"]
    codebook_size: PositiveInt
    codebook_dim: PositiveInt


class FSQConfig(Frozen):
    """Finite scalar quantization, arXiv:2309.15505."""

    kind: Literal["fsq"]
    levels: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1)] = (
        8, 8, 8, 5, 5, 5,
    )  # fmt: skip

    @property
    def codebook_size(self) -> int:
        return math.prod(self.levels)

    @property
    def codebook_dim(self) -> int:
        return len(self.levels)


class LFQConfig(Frozen):
    """Lookup-free quantization, arXiv:2310.05737: one bit per channel, first channel highest."""

    kind: Literal["lfq"]
    dim: Annotated[int, Field(ge=1, le=31)]

    @property
    def codebook_size(self) -> int:
        return int(2**self.dim)

    @property
    def codebook_dim(self) -> int:
        return self.dim


class TokenizerConfig(Frozen):
    """What turns pixels into codes."""

    name: str = "unnamed"
    """Written to every shard, for people; the fingerprint is what identifies it."""
    encoder: Encoder3DConfig
    quantizer: Annotated[VQConfig | FSQConfig | LFQConfig, Field(discriminator="kind")]
    weights: Uri | None = None
    """safetensors with keys ``encoder.*`` and ``quantizer.*``. Without: random, from ``seed``."""
    seed: int = 0
    """Seed of the random weights used when ``weights`` is not given (for tests and demos)."""

    @model_validator(mode="after")
    def _quantizer_fits_encoder(self) -> Self:
        got, want = self.quantizer.codebook_dim, self.encoder.z_channels
        if got != want:
            raise ValueError(
                f"quantizer takes {got} channels but encoder.z_channels={want}; make them equal"
            )
        if self.quantizer.codebook_size > 2**32:
            raise ValueError(
                f"codebook of {self.quantizer.codebook_size} codes does not fit uint32"
            )
        return self

    @property
    def temporal_stride(self) -> int:
        return self.encoder.temporal_stride

    @property
    def spatial_stride(self) -> int:
        return self.encoder.spatial_stride

    @property
    def codebook_size(self) -> int:
        return self.quantizer.codebook_size

    @property
    def code_dtype(self) -> Literal["uint16", "uint32"]:
        """Smallest type that Parquet readers agree on and that holds every code."""
        return "uint16" if self.codebook_size <= 65_536 else "uint32"
