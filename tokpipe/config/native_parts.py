"""Encoder, decoder and quantizers of the ``native`` tokenizer; names as published."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from tokpipe.config.base import Frozen

_MULTIPLES = "Channels of each level, in multiples of the finest. All but the last halve the size."
ChannelMultiples = Annotated[tuple[PositiveInt, ...], Field(min_length=1, description=_MULTIPLES)]
FinestChannels = Annotated[PositiveInt, Field(description="Channels of the finest level.")]
FSQLevels = Annotated[
    tuple[Annotated[int, Field(ge=2)], ...],
    Field(min_length=1, description="Values that each channel is rounded to."),
]


def check_channels(ch: int, ch_mult: tuple[int, ...]) -> None:
    """Raise ValueError if GroupNorm cannot divide the channels of a level into its 32 groups."""
    if bad := [mult for mult in ch_mult if ch * mult % 32]:
        raise ValueError(f"ch={ch} times ch_mult={bad[0]} is not a multiple of 32 for GroupNorm")


class Levels(Frozen):
    """Levels of convolutions, each half the size of the one before; names as published."""

    kind: str
    ch: FinestChannels = 128
    ch_mult: ChannelMultiples = (1, 2, 4, 4)
    num_res_blocks: PositiveInt = 2
    """Residual blocks per level of the encoder; the decoder has one more."""
    attn_resolutions: tuple[int, ...] = ()
    """Sizes at which attention follows each residual block."""
    resolution: PositiveInt = 256
    """Nominal size of a frame. It only says which levels ``attn_resolutions`` stand for."""

    @model_validator(mode="after")
    def _channels_fill_groups(self) -> Self:
        check_channels(self.ch, self.ch_mult)
        return self

    @property
    def spatial_stride(self) -> int:
        """Inputs (pixels, or patches of them) per latent row and column."""
        return int(2 ** (len(self.ch_mult) - 1))


PadMode = Literal["first", "constant", "reflect", "constant_causal", "constant_published"]


class _Levels3D(Levels):
    pad_mode: PadMode = "first"
    """Padding in front of the first frame: ``first`` repeats it, ``constant_causal`` is zero,
    ``reflect`` mirrors the frames after it. ``constant_published`` is what published code computes
    under ``constant``: zeros in the wrong places ([models.md](models.md)). So with ``weights``,
    ``constant`` is not enough; without, it is ``constant_causal``."""
    resamp_with_conv: bool = True
    """Convolve where the size changes, rather than average or repeat."""


class Encoder3DConfig(_Levels3D):
    """Causal 3D encoder of the CogVideo VQ-VAE/MoVQ family; names as published."""

    kind: Literal["encoder_3d"] = "encoder_3d"
    in_channels: Literal[3, 12, 48] | None = None
    """3 times the square of ``patch_size``, which is also the default."""
    z_channels: PositiveInt = 16
    """Channels of the latent; must match the quantizer."""
    temporal_compress_times: Literal[1, 2, 4, 8, 16] = 4
    """Frames per latent frame, after the first."""

    @model_validator(mode="after")
    def _time_is_halved_with_space(self) -> Self:
        times, most = self.temporal_compress_times, self.spatial_stride
        if times > most:
            need = f"needs more levels than the {len(self.ch_mult)} of ch_mult: use at most {most}"
            raise ValueError(f"temporal_compress_times={times} {need}")
        return self


class Movq3DConfig(_Levels3D):
    """3D decoder of the MoVQ family, whose norms all see the code vectors; names as published.

    Latent channels, temporal stride and patch size are those of the encoder.
    """

    kind: Literal["movq_3d"] = "movq_3d"
    add_conv: bool = False
    """Norms convolve the code vectors before they use them."""
    add_conv_pad_mode: PadMode = "constant"
    """``pad_mode`` of these convolutions; published decoders had ``constant_published``."""
    post_quant_conv: bool = False
    """Convolve the code vectors before the first layer."""


class _Codebook(Frozen):
    codebook_size: PositiveInt
    codebook_dim: PositiveInt
    """Channels of a code vector, which the decoder takes."""
    remap: tuple[NonNegativeInt, ...] | None = None
    """Entries of the codebook in use; codes are positions in this list."""
    unknown_index: Literal["random", "extra"] | NonNegativeInt = "random"
    """Code of other entries: a position in ``remap``, ``extra`` for one more code, or ``random``
    for the entry modulo the length of ``remap``."""

    @property
    def num_codes(self) -> int:
        if self.remap is None:
            return self.codebook_size
        return len(self.remap) + (self.unknown_index == "extra")


class VQConfig(_Codebook):
    """Nearest vector of a learned codebook, arXiv:1711.00937 (``ema_vq``: of moving averages)."""

    kind: Literal["vq", "ema_vq"]

    @property
    def latent_dim(self) -> int:
        return self.codebook_dim


class GumbelConfig(_Codebook):
    """Argmax of one logit per code, arXiv:1611.01144."""

    kind: Literal["gumbel"]
    latent_dim: PositiveInt
    """Channels of the latent, which are projected to the logits."""


class FSQConfig(Frozen):
    """Finite scalar quantization, arXiv:2309.15505."""

    kind: Literal["fsq"]
    levels: FSQLevels = (8, 8, 8, 5, 5, 5)
    num_codebooks: PositiveInt = 1
    """Groups of channels with these levels. Each has a code of its own at every position."""
    dim: PositiveInt | None = None
    """Channels of latent and code vectors, if they are projected to the rounded ones and back."""

    @property
    def num_codes(self) -> int:
        return math.prod(self.levels)

    @property
    def codebook_dim(self) -> int:
        return self.dim or len(self.levels) * self.num_codebooks

    latent_dim = codebook_dim


class LFQConfig(Frozen):
    """Lookup-free quantization, arXiv:2310.05737: one bit per channel."""

    kind: Literal["lfq"]
    dim: Annotated[int, Field(ge=1, le=62)]
    """Channels of the latent, and bits of a code unless ``num_bits`` says otherwise."""
    num_bits: Annotated[int, Field(ge=1, le=62)] | None = None
    """Bits of a code, if the channels are projected to them, and back."""
    num_codebooks: PositiveInt = 1
    """Groups of bits. Each has a code of its own at every position."""
    bit_order: Literal["big", "little"] = "big"
    """``big``: the first channel is the highest bit of a code; ``little``: the lowest."""

    @property
    def num_codes(self) -> int:
        return int(2 ** (self.num_bits or self.dim))

    @property
    def codebook_dim(self) -> int:
        return self.dim

    latent_dim = codebook_dim


QuantizerConfig = Annotated[
    VQConfig | FSQConfig | LFQConfig | GumbelConfig, Field(discriminator="kind")
]
