"""The VQGAN family of tokenizers, and its relative for video: Emu3's from transformers."""

import math
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokpipe.config.published import RENAMED
from tokpipe.config.tokenizer import Emu3Config, VQGANConfig
from tokpipe.errors import ConfigError
from tokpipe.models import LFQ, GumbelQuantizer, Quantizer, VectorQuantizer
from tokpipe.models.blocks import ResnetBlock
from tokpipe.models.causal_conv import CausalConv3d
from tokpipe.models.group_norm import group_norm
from tokpipe.models.levels import Factory, Levels, Pyramid
from tokpipe.models.networks_2d import Decoder, Encoder
from tokpipe.models.operations import Conv2d, Conv3d, same_conv2d, silu
from tokpipe.models.tokenizers.base import VideoTokenizer, codes_or_not_finite, renamed_keys


class VQGANTokenizer(VideoTokenizer):
    """2D encoder, 1x1 convolution, quantizer, 1x1 convolution, 2D decoder.

    Keys are the published ones: ``encoder``, ``quant_conv``, ``quantize``, ``post_quant_conv``,
    ``decoder``. Open-MAGVIT2 has no 1x1 convolutions. Published code adds the latent's norm to
    every distance, so it may round to another code vector as near, and noise to the logits of
    ``gumbel``. Source: arXiv:2012.09841; MoVQ, arXiv:2209.09002; LlamaGen, arXiv:2406.06525; IBQ,
    arXiv:2412.02692; Open-MAGVIT2, arXiv:2409.04410.
    """

    def __init__(self, config: VQGANConfig, *, with_decoder: bool) -> None:
        super().__init__(config.traits)
        z, dim = config.z_channels, config.embed_dim
        names = {"ch", "ch_mult", "num_res_blocks", "attn_resolutions", "resolution"}
        shape = config.model_dump(include=names)
        self.is_movq = config.decoder == "movq"
        self.encoder: nn.Module
        self.decoder: nn.Module | None = None
        self.quant_conv: nn.Module = nn.Identity()
        self.post_quant_conv: nn.Module | None = nn.Identity() if with_decoder else None
        self.quantize = _quantizer(config)
        if config.quantizer == "lfq":
            stride = config.traits.temporal_stride if config.convolutions != "2d" else None
            how: dict[str, Any] = {"z_channels": z, "temporal_stride": stride}
            self.encoder = _MAGVIT2Encoder(Pyramid(**shape), **how)
            if with_decoder:
                self.decoder = _MAGVIT2Decoder(Pyramid(**shape), **how)
            return
        self.encoder = Encoder(**shape, in_channels=3, z_channels=z, double_z=False)
        self.quant_conv = Conv2d(z, dim, 1)
        if with_decoder:
            self.post_quant_conv = Conv2d(dim, z, 1)
            zq_ch = dim if self.is_movq else None
            self.decoder = Decoder(**shape, out_ch=3, z_channels=z, zq_ch=zq_ch)

    @staticmethod
    def renamed(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Rename the keys of LlamaGen, Janus, transformers' JanusVQVAE and Open-MAGVIT2's video."""
        renamed = renamed_keys(state, RENAMED["taming"])
        renamed.pop("quantize.codebook_used", None)  # statistics of training
        if not any(key.startswith("decoder.up.0.upsample.conv.") for key in renamed):
            return renamed
        # These count the levels of the decoder from the coarsest.
        last = max(int(level) for level in re.findall(r"decoder\.up\.(\d+)", " ".join(renamed)))
        reverse = {rf"^decoder\.up\.{n}\.": f"decoder.up.-{last - n}." for n in range(last + 1)}
        return renamed_keys(renamed, {**reverse, r"\.up\.-": ".up."})

    def _encode(self, x: Tensor) -> Tensor:
        return codes_or_not_finite(self.quantize, self.quant_conv(self.encoder(x)))

    def _decode(self, codes: Tensor) -> Tensor:
        vectors = self.quantize.vectors_of(codes).to(self.dtype)
        z = self._needed(self.post_quant_conv)(vectors)
        return self._needed(self.decoder)(z, *([vectors] if self.is_movq else []))


def _quantizer(config: VQGANConfig) -> Quantizer:
    dim, size = config.embed_dim, config.codebook_size
    if config.quantizer == "gumbel":
        return GumbelQuantizer(dim, dim, size)
    if config.quantizer == "lfq":
        quantizer = LFQ(dim, bit_order="little")
        quantizer.register_buffer("mask", quantizer.mask, persistent=False)  # as in Open-MAGVIT2
        return quantizer
    search = {"vq": "nearest", "ibq": "dot", "vq_cosine": "cosine"}[config.quantizer]
    return VectorQuantizer(size, dim, search=search)


class _MAGVIT2(nn.Module):
    """What Open-MAGVIT2's encoder and decoder share: no attention and few biases. With
    ``temporal_stride`` convolutions are causal, over time as well, but norms span all frames."""

    def __init__(self, pyramid: Pyramid, temporal_stride: int | None) -> None:
        super().__init__()
        causal = partial(CausalConv3d, pad_mode="constant_causal")
        self.conv: Factory = same_conv2d if temporal_stride is None else causal
        conv = partial(self.conv, bias=False)
        self.block = partial(ResnetBlock, dropout=0.0, temb_channels=0, make_conv=conv)
        widths = [pyramid.widths[-1]] * pyramid.num_res_blocks
        self.mid_block = nn.Sequential(*(self.block(in_channels=width) for width in widths))


class _MAGVIT2Encoder(_MAGVIT2):
    """Images, or clips, to latents."""

    def __init__(self, pyramid: Pyramid, *, z_channels: int, temporal_stride: int | None) -> None:
        super().__init__(pyramid, temporal_stride)
        self.conv_in = self.conv(3, pyramid.ch, 3, bias=False)
        self.down = Levels(
            *("down", pyramid, self.block, nn.Identity, _halving),
            temporal_stride=temporal_stride,
            time_last=True,
        )
        self.norm_out = group_norm(pyramid.widths[-1])
        self.conv_out = self.conv(pyramid.widths[-1], z_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, ..., H, W) in [-1, 1] -> (B, z_channels, ..., H / s, W / s)."""
        h = self.mid_block(self.down(self.conv_in(x)))
        return self.conv_out(silu(self.norm_out(h)))


def _halving(channels: int, _with_conv: bool, *in_time: bool) -> nn.Module:
    """A convolution that halves rows and columns, and ``in_time`` 2T + 1 frames to T + 1."""
    if not in_time:
        return Conv2d(channels, channels, 3, stride=2, padding=1)
    conv = Conv3d(channels, channels, 3, stride=(1 + in_time[0], 2, 2), padding=(0, 1, 1))
    return nn.Sequential(nn.ConstantPad3d((0, 0, 0, 0, 2, 0), 0.0), conv)


class _MAGVIT2Decoder(_MAGVIT2):
    """Latents to images, or clips. The latent's deviation and mean scale and shift norms."""

    def __init__(self, pyramid: Pyramid, *, z_channels: int, temporal_stride: int | None) -> None:
        super().__init__(pyramid, temporal_stride)
        widths, linear = pyramid.widths, partial(nn.Linear, z_channels)
        self.conv_in = self.conv(z_channels, widths[-1], 3)
        self.up = Levels(
            *("up", pyramid, self.block, nn.Identity, partial(_DepthToSpace, self.conv)),
            temporal_stride=temporal_stride,
            more_up=0,
        )
        pairs = ({"gamma": linear(n), "beta": linear(n)} for n in [*widths[1:], widths[-1]])
        self.adaptive = nn.ModuleList(map(nn.ModuleDict, pairs))
        self.norm_out = group_norm(widths[0])
        self.conv_out = self.conv(widths[0], 3, 3)

    def forward(self, z: Tensor) -> Tensor:
        """(B, z_channels, ..., h, w) -> (B, 3, ..., s h, s w); NaN if there is one position."""
        h = self.mid_block(self.conv_in(z))
        flat = z.flatten(2)
        deviation, mean = (flat.var(-1) + 1e-6).sqrt(), flat.mean(-1)
        for level, layers in zip(self.up.in_order(), list(self.adaptive)[::-1], strict=True):
            scale, shift = layers.gamma(deviation), layers.beta(mean)  # type: ignore[operator]
            h = F.group_norm(h.contiguous(), 32, eps=1e-6)
            shape = (*scale.shape, *[1] * (h.ndim - 2))
            h = h * scale.view(shape) + shift.view(shape)
            for block in level.block:
                h = block(h)
            h = h if level.upsample is None else level.upsample(h)
        return self.conv_out(silu(self.norm_out(h)))


class _DepthToSpace(nn.Module):
    """Doubles rows, columns and, ``in_time``, later frames, from channels of a convolution."""

    def __init__(self, conv: Factory, channels: int, _with_conv: bool, *in_time: bool) -> None:
        super().__init__()
        self.factors = (*(1 + one for one in in_time), 2, 2)
        self.conv1 = conv(channels, math.prod(self.factors) * channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ..., H, W) -> (B, C, ..., 2H, 2W)."""
        # All channels of a position are together, where pixel_shuffle has positions of a channel.
        y = self.conv1(x).unflatten(1, (*self.factors, -1))
        last = len(self.factors) + 1
        y = y.permute(0, last, *(axis for n in range(1, last) for axis in (last + n, n)))
        sizes = [n * factor for n, factor in zip(x.shape[2:], self.factors, strict=True)]
        y = y.reshape(*x.shape[:2], *sizes)
        return torch.cat([y[:, :, :1], y[:, :, 2:]], dim=2) if self.factors[:-2] == (2,) else y


class Emu3Tokenizer(VideoTokenizer):
    """Four frames to one latent frame: 2D encoder, convolutions over time, codebook.

    Model and keys are those of transformers' ``Emu3VQVAE``. The codebook is searched in float32,
    where transformers uses the type of the weights: bfloat16 names other code vectors.
    Source: arXiv:2409.18869; transformers, ``models/emu3/modeling_emu3.py``.
    """

    def __init__(self, config: Emu3Config, *, with_decoder: bool) -> None:
        super().__init__(config.traits)
        model = _published_model(config)
        self.encoder: nn.Module = model.encoder
        self.quant_conv: nn.Module = model.quant_conv
        self.quantize = VectorQuantizer(config.codebook_size, config.embed_dim)
        self.decoder: nn.Module | None = model.decoder if with_decoder else None
        self.post_quant_conv: nn.Module | None = model.post_quant_conv if with_decoder else None
        # Torch's convolutions become this project's, which round alike in any batch.
        own: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: Conv2d, nn.Conv3d: Conv3d}
        for part in self.modules():
            if isinstance(part, nn.Conv2d | nn.Conv3d) and type(part) in own:
                assert (part.groups, part.padding_mode) == (1, "zeros")
                part.__class__ = own[type(part)]  # type: ignore[assignment] # only forward differs

    @staticmethod
    def renamed(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Rename the keys of BAAI/Emu3-VisionTokenizer; leave keys of transformers unchanged."""
        renamed = renamed_keys(state, RENAMED["transformers"])
        for key, value in renamed.items():
            if key.endswith("_proj.weight") and value.ndim == 4 and value.shape[2:] == (1, 1):
                renamed[key] = value.flatten(1)
        return renamed

    def _encode(self, x: Tensor) -> Tensor:
        latent = self.encoder(x).transpose(1, 2)  # (B, C, t, h, w)
        return codes_or_not_finite(self.quantize, self.quant_conv(latent))

    def _decode(self, codes: Tensor) -> Tensor:
        vectors = self.quantize.vectors_of(codes).to(self.dtype)
        post = self._needed(self.post_quant_conv)(vectors)
        frames: Tensor = self._needed(self.decoder)(post.transpose(1, 2), vectors.transpose(1, 2))
        num_frames = self.traits.num_frames(codes.shape[1])
        return frames.view(len(codes), num_frames, *frames.shape[1:])


def _published_model(config: Emu3Config) -> Any:
    try:
        from transformers import Emu3VQVAE, Emu3VQVAEConfig
    except ImportError as error:
        raise ConfigError(
            f"tokenizer.kind emu3 needs the package transformers, 4.48 or newer ({error}): install "
            "tokpipe[emu3] on every node that encodes"
        ) from error
    others = {"kind", "name", "weights", "licence"}
    return Emu3VQVAE(
        Emu3VQVAEConfig(
            **config.model_dump(mode="json", exclude=others),
            latent_channels=config.embed_dim,
            # The width of attention, which transformers sets for the published settings only.
            hidden_size=config.base_channels * config.channel_multiplier[-1],
            temporal_downsample_factor=config.traits.temporal_stride,
        )
    )
