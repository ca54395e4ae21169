"""Microsoft's VidTok: causal tokenizers of video that convolve over space and time in turn."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokpipe.config.published import RENAMED
from tokpipe.config.tokenizer import VidTokConfig
from tokpipe.models import FSQ
from tokpipe.models.autoencoder_3d import Network3D
from tokpipe.models.blocks import AttnBlock2D, Downsample, ResnetBlock, Upsample, silu_conv
from tokpipe.models.causal_conv import CausalConv3d
from tokpipe.models.levels import Levels, MidBlocks, Pyramid
from tokpipe.models.streaming import Stream
from tokpipe.models.tokenizers.base import renamed_keys
from tokpipe.models.tokenizers.native import CausalTokenizer


class VidTokTokenizer(CausalTokenizer):
    """``EncoderCausal3DPadding``, FSQ and ``DecoderCausal3DPadding``, with the published keys.
    Source: arXiv:2412.13061, ``model_3dcausal.py`` and ``model_3dcausal_v1_1.py``."""

    def __init__(self, config: VidTokConfig, *, with_decoder: bool) -> None:
        super().__init__(config.traits)
        self.encoder: _Network = _Network("down", config)
        self.quant_conv = nn.Identity()
        self.quantizer = FSQ(config.levels)
        self.decoder = _Network("up", config) if with_decoder else None

    @staticmethod
    def renamed(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Convolutions over time become 3D, and those of attention 2D."""
        renamed = renamed_keys(state, RENAMED["vidtok"])
        for key, value in renamed.items():
            if value.ndim == 3:
                renamed[key] = value[..., None, None]
            elif value.ndim == 5 and ".attn_1." in key:
                renamed[key] = value.flatten(2).unsqueeze(-1)
        return renamed


class _Network(Network3D):
    """The way ``down`` from frames to latents, or ``up`` from latents to frames.

    Each residual block of frames is followed by one of single positions over time. As published,
    copies of the first frame fill its latent frame, and what they become is dropped on the way up.
    No frame sees a later one, except by ``_TimeUp`` in v1.1.
    """

    def __init__(self, way: Literal["down", "up"], config: VidTokConfig) -> None:
        names = {"ch", "ch_mult", "num_res_blocks"}
        shape = Pyramid(**config.model_dump(include=names), attn_resolutions=(), resolution=256)
        super().__init__(shape, config.time_downsample_factor, "frame")
        self.way = way
        is_new = config.release == "v1.1"
        conv = partial(CausalConv3d, pad_mode="first" if is_new else "constant_causal")
        block = partial(ResnetBlock, dropout=0.0, temb_channels=0, make_norm=_ChannelNorm)
        over_time = partial(block, make_conv=lambda i, o, size: conv(i, o, (size, 1, 1)))
        attention = partial(AttnBlock2D, make_norm=_ChannelNorm)
        z, finest, coarsest = len(config.levels), shape.widths[0], shape.widths[-1]
        channels = (3, shape.ch, coarsest, z) if way == "down" else (z, coarsest, finest, 3)
        num_first = iter((1, 2, 4))  # frames of the first latent frame before each _TimeUp

        def in_time(width: int, _: bool, is_halved: bool) -> nn.Module | None:
            if not is_halved:
                return None
            if way == "down":
                return _TimeDown(conv(width, width, 3, stride=2))
            return _TimeUp(conv(width, width, 3), next(num_first) if is_new else None)

        self.conv_in = conv(*channels[:2], 3)
        self.mid = MidBlocks(coarsest, partial(block, make_conv=conv), attention)
        resample = Downsample if way == "down" else Upsample
        self.add_module(way, Levels(way, shape, block, nn.Identity, resample))
        times = Levels(
            *(way, shape, lambda in_channels, out_channels: over_time(in_channels=out_channels)),
            *(nn.Identity, in_time),
            temporal_stride=self.temporal_stride,
            time_last=True,
        )
        self.add_module(f"{way}_temporal", times)
        self.norm_out: Any = _ChannelNorm(channels[2])
        self.conv_out = conv(*channels[2:], 3)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """(B, 3, 1 + r(t-1), s*h, s*w) in [-1, 1] -> (B, z, t, h, w), or the other way."""
        is_down, starts = self.way == "down", stream is None or stream.is_first
        num_copies = self.temporal_stride - 1
        if is_down and starts:
            x = torch.cat([x[:, :, :1].expand(-1, -1, num_copies, -1, -1), x], dim=2)
        h = self.conv_in(x, stream)
        if not is_down:
            h = self.mid(h, None, None, stream)
        levels, times = getattr(self, self.way), getattr(self, f"{self.way}_temporal")
        for level, in_time in zip(levels.in_order(), times.in_order(), strict=True):
            for block, over_time in zip(level.block, in_time.block, strict=True):
                h = over_time(block(h), None, None, stream)
            if (resample := level.downsample or level.upsample) is not None:
                h = resample(h)
            if (resample := in_time.downsample or in_time.upsample) is not None:
                h = resample(h, stream)
        if is_down:
            h = self.mid(h, None, None, stream)
        h = silu_conv(self.norm_out, self.conv_out, h, None, stream)
        return h if is_down or not starts else h[:, :, num_copies:]


class _ChannelNorm(nn.Module):
    """Layer norm of the channels of each position."""

    def __init__(self, channels: int, *_: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> the same shape."""
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class _TimeDown(nn.Module):
    """Halves time by a strided convolution, mixed with the mean of the frames that it sees."""

    def __init__(self, conv: CausalConv3d) -> None:
        super().__init__()
        self.conv = conv
        self.mix_factor = nn.Parameter(torch.tensor([2.0]))

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """(B, C, 2T, H, W) -> (B, C, T, H, W)."""
        x = self.conv.padded(x, stream)
        mean = (x[:, :, :-2:2] + x[:, :, 1:-1:2] + x[:, :, 2::2]) / 3
        share = self.mix_factor.sigmoid()
        return share * mean + (1 - share) * self.conv.conv(x)


class _TimeUp(nn.Module):
    """Doubles time, and mixes the result with a convolution of it. Frames are repeated or, with
    ``num_first``, interpolated: so many, which one latent frame became, apart from the others."""

    def __init__(self, conv: CausalConv3d, num_first: int | None) -> None:
        super().__init__()
        self.conv, self.num_first = conv, num_first
        self.mix_factor = nn.Parameter(torch.tensor([2.0]))

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """(B, C, T, H, W) -> (B, C, 2T, H, W)."""
        if (first := self.num_first) is None:
            x = x.repeat_interleave(2, dim=2)
        else:
            doubled = partial(F.interpolate, scale_factor=(2.0, 1.0, 1.0), mode="trilinear")
            parts = [doubled(one) for one in x.float().tensor_split([first], 2) if one.numel()]
            x = torch.cat(parts, dim=2).to(x.dtype)
        share = self.mix_factor.sigmoid()
        return share * x + (1 - share) * self.conv(x, stream)
