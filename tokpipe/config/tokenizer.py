"""Tokenizers: which there are, what their numbers are, where their weights are.

Every kind knows its ``traits``, so that a job is checked and planned without torch.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    JsonValue,
    PositiveInt,
    Tag,
    model_validator,
)

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

    @property
    def libraries(self) -> tuple[str, ...]:
        """Packages beside torch whose version can change a code."""
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
    """Nearest code vector of a learnt codebook, arXiv:1711.00937."""

    kind: Literal["vq"]
    codebook_size: PositiveInt
    codebook_dim: PositiveInt

    @property
    def latent_dim(self) -> int:
        """Channels of the latent."""
        return self.codebook_dim


class EMAVQConfig(Frozen):
    """Nearest code vector of a codebook that was learnt by moving averages, arXiv:1711.00937."""

    kind: Literal["ema_vq"]
    codebook_size: PositiveInt
    codebook_dim: PositiveInt

    @property
    def latent_dim(self) -> int:
        return self.codebook_dim


class GumbelConfig(Frozen):
    """Greatest of one logit per code, arXiv:1611.01144."""

    kind: Literal["gumbel"]
    codebook_size: PositiveInt
    codebook_dim: PositiveInt
    """Channels of a code vector, which the decoder takes."""
    latent_dim: PositiveInt
    """Channels of the latent, which are projected to the logits."""


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
    def latent_dim(self) -> int:
        return self.codebook_dim


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

    @property
    def latent_dim(self) -> int:
        return self.dim


QuantizerConfig = Annotated[
    VQConfig | FSQConfig | LFQConfig | EMAVQConfig | GumbelConfig, Field(discriminator="kind")
]


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
        got, want = self.quantizer.latent_dim, self.encoder.z_channels
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
            bit_order=self.quantizer.bit_order if isinstance(self.quantizer, LFQConfig) else None,
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


# --- published ones -------------------------------------------------------------------------------


class MoVQGANConfig(TokenizerConfig):
    """SBER-MoVQGAN: images, or the frames of a video one by one, with its published keys.

    As they stand the settings are those of the 270M model; 67M has ``ch: 128``, 102M ``ch: 128``
    and ``num_res_blocks: 4``.
    """

    kind: Literal["movqgan"]
    name: str = "sber-movqgan"
    """Written to every shard, for people; the fingerprint is what identifies it."""
    weights: Uri
    """safetensors with keys ``encoder.*``, ``quant_conv.*``, ``quantize.embedding.weight``,
    ``post_quant_conv.*`` and ``decoder.*``; `tokpipe convert` makes them of the published .ckpt."""
    ch: PositiveInt = 256
    """Channels of the finest level."""
    ch_mult: ChannelMultiples = (1, 2, 2, 4)
    """Channels of each level, in multiples of ``ch``; each level but the last halves the size."""
    num_res_blocks: PositiveInt = 2
    """Residual blocks per level of the encoder; the decoder has one more."""
    attn_resolutions: tuple[int, ...] = (32,)
    """Sizes at which attention follows each residual block."""
    resolution: PositiveInt = 256
    """Nominal size: decides at which level ``attn_resolutions`` put attention, nothing else."""
    z_channels: PositiveInt = 4
    """Channels between the encoder and ``quant_conv``."""
    embed_dim: PositiveInt = 4
    """Channels of a code vector."""
    codebook_size: PositiveInt = 16_384
    licence: str | None = None
    """Licence of the weights, for people; their repository names none."""

    @model_validator(mode="after")
    def _published_limits(self) -> Self:
        _check_channels(self.ch, self.ch_mult)
        return self

    @property
    def traits(self) -> TokenizerTraits:
        return TokenizerTraits(
            temporal_stride=1,
            spatial_stride=int(2 ** (len(self.ch_mult) - 1)),
            codebook_size=self.codebook_size,
            layout="BCHW",
            licence=self.licence,
            why_not_streamable=None,
        )

    @property
    def decoder_keys(self) -> tuple[str, ...]:
        return ("decoder.", "post_quant_conv.")

    def codes_settings(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"name", "weights", "licence"})


class Emu3Config(TokenizerConfig):
    """Emu3's video tokenizer, by way of the package transformers: four frames per latent frame.

    Its authors encode four frames at a time, and others give other codes, so every chunk has
    four. Names as in transformers' ``Emu3VQVAEConfig``; as they stand the settings are the
    published ones.
    """

    kind: Literal["emu3"]
    name: str = "emu3-vision-tokenizer"
    """Written to every shard, for people; the fingerprint is what identifies it."""
    weights: Uri
    """safetensors with the keys of transformers' ``Emu3VQVAE``, or of BAAI/Emu3-VisionTokenizer."""
    base_channels: PositiveInt = 256
    """Channels of the finest level."""
    channel_multiplier: ChannelMultiples = (1, 2, 2, 4)
    """Channels of each level, in multiples of ``base_channels``; each but the last halves the
    size."""
    num_res_blocks: PositiveInt = 2
    """Residual blocks per level of the encoder; the decoder has one more."""
    attn_resolutions: tuple[int, ...] = (3,)
    """Levels, counted from 0, at which attention follows each residual block."""
    embed_dim: PositiveInt = 4
    """Channels of the latent and of a code vector."""
    codebook_size: PositiveInt = 32_768
    licence: str | None = None
    """Licence of the weights, for people."""

    @model_validator(mode="after")
    def _published_limits(self) -> Self:
        _check_channels(self.base_channels, self.channel_multiplier)
        multiples = self.channel_multiplier
        for level in self.attn_resolutions:
            if not 0 <= level < len(multiples) or multiples[level] != multiples[-1]:
                raise ValueError(
                    f"attn_resolutions names level {level}, but attention is as wide as the last "
                    f"level, {len(multiples) - 1}, and works only at levels of that width"
                )
        return self

    @property
    def traits(self) -> TokenizerTraits:
        return TokenizerTraits(
            temporal_stride=4,
            first_frames=4,
            chunk_frames=4,
            spatial_stride=int(2 ** (len(self.channel_multiplier) - 1)),
            codebook_size=self.codebook_size,
            layout="BTCHW",
            licence=self.licence,
            why_not_streamable=(
                "Emu3 encodes every four frames alone, and a clip that is encoded whole gets other "
                "codes than its authors give it"
            ),
        )

    @property
    def decoder_keys(self) -> tuple[str, ...]:
        return ("decoder.", "post_quant_conv.")

    @property
    def libraries(self) -> tuple[str, ...]:
        return ("transformers",)

    def codes_settings(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"name", "weights", "licence"})


class CosmosDVConfig(TokenizerConfig):
    """NVIDIA's Cosmos discrete video tokenizers, from their TorchScript files.

    A TorchScript file is a program: name only files that you trust as you trust code.
    """

    kind: Literal["cosmos_dv"]
    name: str = "cosmos-dv"
    """Written to every shard, for people; the fingerprint is what identifies it."""
    variant: Literal["4x8x8", "8x8x8", "8x16x16"]
    """Frames x rows x columns of pixels per code, as in the model's name."""
    weights: Uri
    """``encoder.jit``."""
    decoder_weights: Uri | None = None
    """``decoder.jit``; only decoding needs it."""
    licence: str | None = "NVIDIA Open Model License"
    """Licence of the weights, for people."""

    @property
    def traits(self) -> TokenizerTraits:
        time, space, _ = (int(stride) for stride in self.variant.split("x"))
        return TokenizerTraits(
            temporal_stride=time,
            spatial_stride=space,
            codebook_size=64_000,
            licence=self.licence,
            why_not_streamable=(
                "its attention spans all frames of a chunk before each, so no cache of bounded "
                "size gives the codes of the whole clip"
            ),
        )

    def codes_settings(self) -> dict[str, Any]:
        return {"kind": self.kind, "variant": self.variant}


# --- any other ------------------------------------------------------------------------------------


def _check_import_path(text: str) -> str:
    module, _, name = text.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), name]):
        raise ValueError(f"{text!r} does not say where a class is: write package.module:ClassName")
    return text


class CustomConfig(TokenizerConfig):
    """Any tokenizer: a class of your own, found by its import path, and what it declares.

    docs/tokenizers.md says what the class must do, with an example.
    """

    kind: Literal["custom"]
    implementation: Annotated[str, AfterValidator(_check_import_path)]
    """``package.module:ClassName``, importable on every node that encodes."""
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    """Keyword arguments of the class."""
    declares: TokenizerTraits
    """Shapes, ranges and rules; the class is tried out against them before any video is."""
    probe_size: tuple[PositiveInt, PositiveInt] | None = None
    """(height, width) of the noise that it is tried out on; small when left out."""
    weights: Uri | None = None
    """safetensors with the keys of the class; without, it must bring its own."""

    @model_validator(mode="after")
    def _probe_fits(self) -> Self:
        if self.probe_size is not None:
            self.declares.check_size(*self.probe_size)
        return self

    @property
    def traits(self) -> TokenizerTraits:
        return self.declares

    def codes_settings(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "implementation": self.implementation,
            "arguments": self.arguments,
            "declares": self.declares.model_dump(
                mode="json", exclude={"licence", "why_not_streamable"}
            ),
        }


# --- all of them ----------------------------------------------------------------------------------


def _kind(section: Any) -> str | None:
    """The kind of a tokenizer section, as read or built; one that names none is ``native``."""
    if isinstance(section, dict):
        section = section.get("kind", "native")
    kind = getattr(section, "kind", section)
    return kind if isinstance(kind, str) else None


AnyTokenizer = Annotated[
    Annotated[NativeConfig, Tag("native")]
    | Annotated[MoVQGANConfig, Tag("movqgan")]
    | Annotated[Emu3Config, Tag("emu3")]
    | Annotated[CosmosDVConfig, Tag("cosmos_dv")]
    | Annotated[CustomConfig, Tag("custom")],
    Discriminator(_kind),
]
"""A tokenizer section of a job file."""
