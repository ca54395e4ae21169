"""Tokenizers: which there are, what their numbers are, where their weights are.

Every kind knows its ``traits``, so that a job is checked and planned without torch.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator
from typing_extensions import Self

from tokpipe.config.base import Frozen, Uri
from tokpipe.config.traits import TokenizerTraits

ChannelMultiples = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
PadMode = Literal["first", "constant", "reflect"]


class TokenizerConfig(Frozen):
    """What all kinds of tokenizers have."""

    kind: str
    name: str = "unnamed"
    """Written to every shard, for people; the fingerprint is what identifies it."""
    weights: Uri | None = None

    @property
    @abstractmethod
    def traits(self) -> TokenizerTraits:
        """Shapes, ranges and rules."""

    @abstractmethod
    def codes_settings(self) -> dict[str, Any]:
        """What decides the codes, beside the weights: no names, no decoder, no licence."""

    @property
    def decoder_keys(self) -> tuple[str, ...]:
        """Beginnings of the weights' keys that only decoding needs."""
        return ()


# --- the project's own models --------------------------------------------------------------------


class Encoder3DConfig(Frozen):
    """Causal 3D encoder of the CogVideo VQ-VAE/MoVQ family; names as published."""

    kind: Literal["encoder_3d"] = "encoder_3d"
    ch: PositiveInt = 128
    """Channels of the finest level."""
    ch_mult: ChannelMultiples = (1, 2, 4, 4)
    """Channels of each level, in multiples of ``ch``; each level but the last halves the size."""
    num_res_blocks: PositiveInt = 2
    """Residual blocks per level."""
    attn_resolutions: tuple[int, ...] = ()
    """Sizes at which attention follows each residual block."""
    resolution: PositiveInt = 256
    """Nominal size: decides at which level ``attn_resolutions`` put attention, nothing else."""
    in_channels: Literal[3, 12, 48] | None = None
    """3 times the square of ``patch_size``, which it is when left out."""
    z_channels: PositiveInt = 16
    """Channels of the latent, as many as the quantizer takes."""
    temporal_compress_times: Literal[1, 2, 4, 8, 16] = 4
    """Frames per latent frame, after the first."""
    pad_mode: PadMode = "first"
    """What stands before the first frame: repeats of it, zeros, or the frames after it mirrored."""

    @model_validator(mode="after")
    def _published_limits(self) -> Self:
        _check_channels(self.ch, self.ch_mult)
        if self.temporal_compress_times > self.spatial_stride:
            raise ValueError(
                f"temporal_compress_times={self.temporal_compress_times} needs more levels than "
                f"the {len(self.ch_mult)} of ch_mult: at most {self.spatial_stride} here"
            )
        return self

    @property
    def spatial_stride(self) -> int:
        """Inputs (pixels, or patches of them) per latent row and column."""
        return int(2 ** (len(self.ch_mult) - 1))


class Movq3DConfig(Frozen):
    """3D decoder of the MoVQ family, whose every norm sees the code vectors; names as published.

    Channels of the latent, temporal stride and patches are those of the encoder.
    """

    kind: Literal["movq_3d"] = "movq_3d"
    ch: PositiveInt = 128
    """Channels of the finest level."""
    ch_mult: ChannelMultiples = (1, 2, 4, 4)
    """Channels of each level, in multiples of ``ch``; as many levels as the encoder has."""
    num_res_blocks: PositiveInt = 2
    """Residual blocks per level, less the one that decoders have on top."""
    attn_resolutions: tuple[int, ...] = ()
    """Sizes at which attention follows each residual block."""
    resolution: PositiveInt = 256
    """Nominal size: decides at which level ``attn_resolutions`` put attention, nothing else."""
    add_conv: bool = False
    """Norms convolve the code vectors before they use them."""
    pad_mode: PadMode = "first"
    """What stands before the first frame: repeats of it, zeros, or the frames after it mirrored."""
    post_quant_conv: bool = False
    """A convolution of the code vectors before the first layer."""

    @model_validator(mode="after")
    def _published_limits(self) -> Self:
        _check_channels(self.ch, self.ch_mult)
        return self


def _check_channels(ch: int, ch_mult: tuple[int, ...]) -> None:
    if bad := [mult for mult in ch_mult if ch * mult % 32]:
        raise ValueError(
            f"ch={ch} times ch_mult={bad[0]} is no multiple of 32, which GroupNorm needs"
        )


class VQConfig(Frozen):
    """Nearest code vector of a learnt codebook."""

    kind: Literal["vq"]
    codebook_size: PositiveInt
    codebook_dim: PositiveInt

    @property
    def bit_order(self) -> None:
        return None


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

    @property
    def bit_order(self) -> None:
        return None


class LFQConfig(Frozen):
    """Lookup-free quantization, arXiv:2310.05737: one bit per channel."""

    kind: Literal["lfq"]
    dim: Annotated[int, Field(ge=1, le=31)]
    bit_order: Literal["big", "little"] = "big"
    """``big``: the first channel is the highest bit of a code; ``little``: the lowest."""

    @property
    def codebook_size(self) -> int:
        return int(2**self.dim)

    @property
    def codebook_dim(self) -> int:
        return self.dim


QuantizerConfig = Annotated[VQConfig | FSQConfig | LFQConfig, Field(discriminator="kind")]


class NativeConfig(TokenizerConfig):
    """Encoder, quantizer and decoder of this project, in any combination of their settings."""

    kind: Literal["native"] = "native"
    encoder: Encoder3DConfig
    quantizer: QuantizerConfig
    decoder: Movq3DConfig | None = None
    """Only decoding needs it; no code depends on it."""
    patch_size: Literal[1, 2, 4] = 1
    """Squares of so many pixels a side become channels before the encoder."""
    norm: Literal["clip", "frame"] = "clip"
    """Whether the norms of encoder and decoder take their statistics over all frames of a chunk, as
    published, or over each frame alone, which makes the tokenizer streamable."""
    weights: Uri | None = None
    """safetensors with keys ``encoder.*``, ``quantizer.*`` and, if there is a decoder,
    ``decoder.*``. Without: random, from ``seed``."""
    seed: int = 0
    """Seed of the random weights used when ``weights`` is not given (for tests and demos)."""
    licence: str | None = None
    """Licence of the weights, for people."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        got, want = self.quantizer.codebook_dim, self.encoder.z_channels
        if got != want:
            raise ValueError(
                f"quantizer takes {got} channels but encoder.z_channels={want}; make them equal"
            )
        if self.quantizer.codebook_size > 2**32:
            raise ValueError(
                f"codebook of {self.quantizer.codebook_size} codes does not fit uint32"
            )
        channels = self.encoder.in_channels
        if channels is not None and channels != self.pixel_channels:
            raise ValueError(
                f"encoder.in_channels={channels}, but patches of {self.patch_size}x"
                f"{self.patch_size} pixels have {self.pixel_channels} channels: leave it out"
            )
        if self.decoder and len(self.decoder.ch_mult) != len(self.encoder.ch_mult):
            raise ValueError(
                f"decoder.ch_mult has {len(self.decoder.ch_mult)} levels and encoder.ch_mult "
                f"{len(self.encoder.ch_mult)}, so frames would come back in another size: give "
                "both as many"
            )
        return self

    @property
    def pixel_channels(self) -> int:
        """Channels of a patch of RGB pixels."""
        return 3 * self.patch_size**2

    @property
    def traits(self) -> TokenizerTraits:
        return TokenizerTraits(
            temporal_stride=self.encoder.temporal_compress_times,
            spatial_stride=self.encoder.spatial_stride * self.patch_size,
            codebook_size=self.quantizer.codebook_size,
            bit_order=self.quantizer.bit_order,
            licence=self.licence,
            why_not_streamable=self._why_not_streamable,
        )

    @property
    def _why_not_streamable(self) -> str | None:
        if self.norm == "clip":
            return (
                "under tokenizer.norm=clip the statistics of each norm span all frames of a chunk, "
                "so no frame's codes are known before the last frame"
            )
        if self.encoder.pad_mode == "reflect":
            return (
                "under encoder.pad_mode=reflect the first frames see the frames after them, which "
                "a piece may not hold yet"
            )
        return None

    @property
    def decoder_keys(self) -> tuple[str, ...]:
        return ("decoder.",) if self.decoder else ()

    def codes_settings(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "encoder": self.encoder.model_dump(mode="json", exclude={"in_channels"}),
            "quantizer": self.quantizer.model_dump(mode="json"),
            "patch_size": self.patch_size,
            "norm": self.norm,
        }


AnyTokenizer = NativeConfig
