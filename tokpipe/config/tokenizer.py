"""The kinds of tokenizers, with ``traits`` by which jobs are checked and planned without torch."""

import math
from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal, Self

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
from tokpipe.config.native_parts import (
    ChannelMultiples,
    Encoder3DConfig,
    FinestChannels,
    FSQLevels,
    Levels,
    LFQConfig,
    Movq3DConfig,
    QuantizerConfig,
    check_channels,
)
from tokpipe.config.published import presets_of, with_preset
from tokpipe.config.traits import TokenizerTraits

_NAME = "Label in every shard, for people. Programs identify a tokenizer by the fingerprint."
Name = Annotated[str, Field(description=_NAME)]
Licence = Annotated[str | None, Field(description="Licence of the weights, for people.")]
_NOT_IN_CODES: dict[str, Any] = {
    **dict.fromkeys(("name", "weights", "decoder", "decoder_weights", "licence", "seed"), True),
    **dict.fromkeys(("probe_size", "preset"), True),
    "encoder": {"in_channels"},
    "declares": {"licence", "why_not_streamable"},
}
"""Settings, of any kind, that no code depends on. Random weights have their seed in their hash."""


class TokenizerConfig(Frozen):
    """What all kinds of tokenizers have in common."""

    libraries: ClassVar[tuple[str, ...]] = ()
    """Packages, besides torch, whose version can change a code."""

    kind: str
    name: Name = "unnamed"
    weights: Uri | None = None

    @property
    @abstractmethod
    def traits(self) -> TokenizerTraits:
        """Shapes, ranges and rules."""

    def codes_settings(self) -> dict[str, Any]:
        """Return the settings that determine the codes."""
        return self.model_dump(mode="json", exclude=_NOT_IN_CODES)

    @property
    def decoder_keys(self) -> tuple[str, ...]:
        """Prefixes of the weights' keys that only decoding needs."""
        return ()


_NEW: Any = {  # Defaults of settings that earlier outputs do not have; those of others are None
    "quant_conv": False,
    "resamp_with_conv": True,
    "num_codebooks": 1,
    "unknown_index": "random",
}


class NativeConfig(TokenizerConfig):
    """tokpipe's own encoder, quantizer and decoder, in any combination of their settings."""

    kind: Literal["native"] = "native"
    encoder: Encoder3DConfig
    quantizer: QuantizerConfig
    decoder: Movq3DConfig | None = None
    """Only needed to decode; codes do not depend on it."""
    patch_size: Literal[1, 2, 4] = 1
    """Fold squares of this many pixels per side into channels before the encoder."""
    quant_conv: bool = False
    """Convert the encoder's channels to those of the quantizer, by a 1x1x1 convolution."""
    norm: Literal["clip", "frame"] = "clip"
    """Whether the norms of encoder and decoder compute their statistics over all frames of a
    chunk, as published, or over each frame separately, which makes the tokenizer streamable."""
    weights: Uri | None = None
    """safetensors with keys ``encoder.*``, ``quant_conv.*``, ``quantizer.*``, ``decoder.*``.
    Without it, weights are random, from ``seed``."""
    seed: int = 0
    """Seed of the random weights that are used without ``weights``, for tests and demos."""
    licence: Licence = None

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        needed, channels = self.quantizer.latent_dim, self.encoder.z_channels
        if needed != channels and not self.quant_conv:
            found = f"quantizer takes {needed} channels but encoder.z_channels={channels}"
            raise ValueError(f"{found}: make them equal, or set quant_conv")
        if (size := self.quantizer.num_codes) > 2**63:
            raise ValueError(f"a codebook of {size} codes is too large: use at most {2**63}")
        given, side = self.encoder.in_channels, self.patch_size
        if given not in (None, self.pixel_channels):
            found = f"encoder.in_channels={given}, but patches of {side}x{side} pixels have"
            raise ValueError(f"{found} {self.pixel_channels} channels: leave it out")
        levels = len(self.encoder.ch_mult)
        if self.decoder and len(self.decoder.ch_mult) != levels:
            found = f"decoder.ch_mult has {len(self.decoder.ch_mult)} levels but encoder.ch_mult"
            raise ValueError(f"{found} {levels}, so decoded frames would change size: use as many")
        return self

    def codes_settings(self) -> dict[str, Any]:
        settings = super().codes_settings()
        for section in (settings, settings["encoder"], settings["quantizer"]):
            for name in [k for k, v in section.items() if v is None or _NEW.get(k) == v]:
                del section[name]
        if self.encoder.pad_mode == "constant_causal":  # only a name
            settings["encoder"]["pad_mode"] = "constant"
        return settings

    @property
    def pixel_channels(self) -> int:
        """Channels of a patch of RGB pixels."""
        return 3 * self.patch_size**2

    @property
    def traits(self) -> TokenizerTraits:
        why, norm, pad_mode = None, self.norm, self.encoder.pad_mode
        if norm == "clip" or pad_mode in ("reflect", "constant_published"):
            why = f"under tokenizer.norm={norm} and encoder.pad_mode={pad_mode} codes depend on "
            why += "later frames, which may not be decoded yet"
        return TokenizerTraits(
            temporal_stride=self.encoder.temporal_compress_times,
            spatial_stride=self.encoder.spatial_stride * self.patch_size,
            codebook_size=self.quantizer.num_codes,
            codes_per_position=getattr(self.quantizer, "num_codebooks", 1),
            bit_order=self.quantizer.bit_order if isinstance(self.quantizer, LFQConfig) else None,
            why_not_streamable=why,
        )

    @property
    def decoder_keys(self) -> tuple[str, ...]:
        return ("decoder.",) if self.decoder else ()


class VQGANConfig(Levels, TokenizerConfig):
    """A tokenizer of the VQGAN family, for images, frames of a video one by one, or clips.

    ``preset`` sets all that is required here; ``kind: movqgan`` sets what ``movqgan-270m`` does.
    """

    decoder_keys: ClassVar[tuple[str, ...]] = ("decoder.", "post_quant_conv.")

    kind: Literal["vqgan", "movqgan"]
    preset: Literal[*presets_of("vqgan")] | None = None  # type: ignore[valid-type]
    """Settings of a published tokenizer, which those written beside it replace."""
    weights: Uri
    """safetensors with the published keys; `tokpipe convert` makes it from a .ckpt."""
    quantizer: Literal["vq", "ibq", "vq_cosine", "gumbel", "lfq"]
    """How a code is found. ``vq``: the nearest code vector. ``ibq``: that of the greatest dot
    product. ``vq_cosine``: of the greatest cosine; the decoder takes vectors of length 1, as in
    LlamaGen. ``gumbel``: the greatest of one logit per code. ``lfq``: one bit per channel, the
    first the lowest, with the networks of Open-MAGVIT2."""
    decoder: Literal["plain", "movq"] = "plain"
    """``movq``: norms of the decoder read the code vectors, as in SBER-MoVQGAN."""
    convolutions: Literal["2d", "causal_3d"] = "2d"
    """``causal_3d``: Open-MAGVIT2's networks of video. Each level but the last that has a multiple
    in ``ch_mult`` other than 1 halves time, too."""
    z_channels: PositiveInt
    """Channels between the encoder and ``quant_conv``."""
    embed_dim: PositiveInt
    """Channels of a code vector."""
    codebook_size: Annotated[int, Field(ge=1, le=2**31)]
    licence: Licence = None

    _with_preset = model_validator(mode="before")(with_preset)

    @model_validator(mode="after")
    def _bits_fit(self) -> Self:
        z, dim, size = self.z_channels, self.embed_dim, self.codebook_size
        quantizer, is_video = self.quantizer, self.convolutions == "causal_3d"
        fits = quantizer == "lfq" and z == dim and size == 2**dim and not self.attn_resolutions
        halves_time = [is_video and multiple != 1 for multiple in self.ch_mult[:-1]]
        if (is_video or quantizer == "lfq") and not (fits and halves_time == sorted(halves_time)):
            raise ValueError(
                f"{quantizer} with z_channels={z}, embed_dim={dim}, codebook_size={size}, "
                f"convolutions={self.convolutions}, ch_mult={[*self.ch_mult]} and "
                f"attn_resolutions={[*self.attn_resolutions]} is not Open-MAGVIT2: use lfq, {dim} "
                f"channels for both, {2**dim} codes, no attention; for video, 1 only at the first"
            )
        return self

    @property
    def traits(self) -> TokenizerTraits:
        is_video = self.convolutions == "causal_3d"
        return TokenizerTraits(
            temporal_stride=2 ** sum(m != 1 for m in self.ch_mult[:-1]) if is_video else 1,
            spatial_stride=self.spatial_stride,
            codebook_size=self.codebook_size,
            layout="BCTHW" if is_video else "BCHW",
            bit_order="little" if self.quantizer == "lfq" else None,
            why_not_streamable="its norms span all frames of a chunk" if is_video else None,
        )

    def codes_settings(self) -> dict[str, Any]:
        settings = super().codes_settings()
        if self.convolutions == "2d":  # as before there were others
            del settings["convolutions"]
        if (self.decoder, self.quantizer) == ("movq", "vq"):  # as when this was a kind
            return {k: v for k, v in settings.items() if k != "quantizer"} | {"kind": "movqgan"}
        return settings


class Emu3Config(TokenizerConfig):
    """Emu3's video tokenizer, through the package transformers: four frames per latent frame.

    Every chunk has four frames, because its authors encode four at a time and other lengths
    produce different codes. Names and defaults are those of transformers' ``Emu3VQVAEConfig``.
    """

    libraries = ("transformers",)
    decoder_keys: ClassVar[tuple[str, ...]] = ("decoder.", "post_quant_conv.")

    kind: Literal["emu3"]
    name: Name = "emu3-vision-tokenizer"
    weights: Uri
    """safetensors with the keys of transformers' ``Emu3VQVAE`` or of BAAI/Emu3-VisionTokenizer."""
    base_channels: FinestChannels = 256
    channel_multiplier: ChannelMultiples = (1, 2, 2, 4)
    num_res_blocks: PositiveInt = 2
    """Residual blocks per level of the encoder; the decoder has one more."""
    attn_resolutions: tuple[int, ...] = (3,)
    """Levels, counted from 0, at which attention follows each residual block."""
    embed_dim: PositiveInt = 4
    """Channels of the latent and of a code vector."""
    codebook_size: PositiveInt = 32_768
    licence: Licence = None

    @model_validator(mode="after")
    def _attention_fits(self) -> Self:
        multiples = self.channel_multiplier
        check_channels(self.base_channels, multiples)
        for level in self.attn_resolutions:
            if not 0 <= level < len(multiples) or multiples[level] != multiples[-1]:
                found = f"attn_resolutions names level {level}, but attention is as wide as"
                last = f"the last level, {len(multiples) - 1}"
                raise ValueError(f"{found} {last}, and works only at levels of that width")
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
            why_not_streamable="Emu3 encodes every four frames separately, not a whole clip",
        )


class VidTokConfig(TokenizerConfig):
    """Microsoft's causal VidTok with FSQ; names as published. ``preset`` sets what is required."""

    decoder_keys: ClassVar[tuple[str, ...]] = ("decoder.",)

    kind: Literal["vidtok"]
    preset: Literal[*presets_of("vidtok")] | None = None  # type: ignore[valid-type]
    """Settings of a published tokenizer, which those written beside it replace."""
    weights: Uri
    """safetensors with the published keys; `tokpipe convert` makes it from a .ckpt."""
    release: Literal["v1.0", "v1.1"]
    """No key of the weights tells it. Convolutions see zeros before the clip in ``v1.0``, and the
    first frame in ``v1.1``, whose decoder interpolates in time."""
    ch: FinestChannels = 128
    ch_mult: Annotated[ChannelMultiples, Field(min_length=4)]
    num_res_blocks: PositiveInt = 2
    """Residual blocks per level of the encoder, over space and time; the decoder has one more."""
    time_downsample_factor: Literal[4, 8]
    """Frames per latent frame, after the first. The last levels that halve the size halve time."""
    levels: FSQLevels
    licence: Licence = None

    _with_preset = model_validator(mode="before")(with_preset)

    @property
    def traits(self) -> TokenizerTraits:
        interpolates = "its decoder interpolates in time"
        return TokenizerTraits(
            temporal_stride=self.time_downsample_factor,
            spatial_stride=int(2 ** (len(self.ch_mult) - 1)),
            codebook_size=math.prod(self.levels),
            why_not_streamable=None if self.release == "v1.0" else interpolates,
        )


class CosmosDVConfig(TokenizerConfig):
    """NVIDIA's Cosmos discrete video tokenizers, from their TorchScript files.

    A TorchScript file is a program: use only files from sources whose code you would run.
    """

    kind: Literal["cosmos_dv"]
    name: Name = "cosmos-dv"
    variant: Literal["4x8x8", "8x8x8", "8x16x16"]
    """Frames x rows x columns of pixels per code, as in the model's name."""
    weights: Uri
    """``encoder.jit``."""
    decoder_weights: Uri | None = None
    """``decoder.jit``; only needed to decode."""
    licence: Licence = "NVIDIA Open Model License"

    @property
    def traits(self) -> TokenizerTraits:
        *time, space, _ = map(int, self.variant.split("x"))
        attention = "its attention covers all earlier frames, which no bounded state holds"
        return TokenizerTraits(
            temporal_stride=time[0] if time else 1,
            spatial_stride=space,
            codebook_size=64_000,
            layout="BCTHW" if time else "BCHW",
            why_not_streamable=attention if time else None,
        )


class CosmosDIConfig(CosmosDVConfig):
    """NVIDIA's Cosmos discrete image tokenizers, for images or the frames of a video one by one."""

    kind: Literal["cosmos_di"]  # type: ignore[assignment] # another kind with the same files
    name: Name = "cosmos-di"
    variant: Literal["8x8", "16x16"]  # type: ignore[assignment]
    """Rows x columns of pixels per code, as in the model's name."""


def _check_import_path(text: str) -> str:
    module, _, name = text.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), name]):
        raise ValueError(f"{text!r} does not name a class: write package.module:ClassName")
    return text


class CustomConfig(TokenizerConfig):
    """Your own class, by import path, and what it declares: see [tokenizers.md](tokenizers.md)."""

    kind: Literal["custom"]
    implementation: Annotated[str, AfterValidator(_check_import_path)]
    """``package.module:ClassName``, importable on every node that encodes."""
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    """Keyword arguments of the class."""
    declares: TokenizerTraits
    """Shapes, ranges and rules. The class is tested against them before any video is encoded."""
    probe_size: tuple[PositiveInt, PositiveInt] | None = None
    """(height, width) of the random frames that it is tested on; small by default."""
    weights: Uri | None = None
    """safetensors with the keys of the class. Without it, the class must bring its own."""

    @model_validator(mode="after")
    def _probe_fits(self) -> Self:
        if self.probe_size is not None:
            self.declares.check_size(*self.probe_size)
        return self

    @property
    def traits(self) -> TokenizerTraits:
        return self.declares


PROGRAMS = ("custom", "cosmos_dv", "cosmos_di")  # They run code, so only the user may choose them


def _kind(section: Any) -> Any:
    is_dict = isinstance(section, dict)
    kind = section.get("kind", "native") if is_dict else getattr(section, "kind", None)
    return "vqgan" if kind == "movqgan" else kind


AnyTokenizer = Annotated[
    Annotated[NativeConfig, Tag("native")]
    | Annotated[VQGANConfig, Tag("vqgan")]
    | Annotated[Emu3Config, Tag("emu3")]
    | Annotated[VidTokConfig, Tag("vidtok")]
    | Annotated[CosmosDVConfig, Tag("cosmos_dv")]
    | Annotated[CosmosDIConfig, Tag("cosmos_di")]
    | Annotated[CustomConfig, Tag("custom")],
    Discriminator(_kind),
]
