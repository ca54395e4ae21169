"""The blocks of encoders and decoders. Attribute names are state_dict keys: an interface.

Shape letters: B images or clips, C channels, T frames, H rows, W columns. ``zq`` is the quantized
latent (B, C_zq, h, w), or (B, C_zq, t, h, w), that the norms of a MoVQ decoder read, and None
elsewhere. ``stream`` is passed where the input is one piece of a clip. Source: CogVideo's
``vqvae_blocks``, ``movq_modules``, ``movq_enc_3d`` and ``movq_dec_3d``, whose classes of the same
name are merged here.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokpipe.models.causal_conv import CausalConv3d, PadMode
from tokpipe.models.group_norm import GroupNorm, Norm, gpu_kernels, is_fused
from tokpipe.models.levels import Pyramid
from tokpipe.models.operations import Conv2d, Conv3d, as_weights, attention, same_conv2d, silu
from tokpipe.models.spatial_norm import SpatialNorm, SpatialNorm3D, block_norm, normalized
from tokpipe.models.streaming import Stream, StreamState


class Network3D(nn.Module):
    """What the 3D encoder and decoder share: strides, and whether clips can come in pieces."""

    def __init__(
        self, pyramid: Pyramid, temporal_compress_times: int, pad_mode: PadMode, norm: Norm
    ) -> None:
        super().__init__()
        self.norm = norm
        self.pad_mode = pad_mode
        self.temporal_stride = temporal_compress_times
        self.spatial_stride = pyramid.spatial_stride
        powers = [2**level for level in range(len(pyramid.ch_mult))]
        if temporal_compress_times not in powers:
            raise ValueError(
                f"temporal_compress_times={temporal_compress_times} cannot be reached by "
                f"halving the frame rate at some of the {len(powers) - 1} steps between levels: "
                f"use one of {powers}"
            )

    @property
    def why_not_streamable(self) -> str | None:
        """Why ``stream`` raises for this network, or None if it does not."""
        if self.norm != "frame":
            return (
                f"norm={self.norm!r} takes statistics over all frames, later ones included, so a "
                "piece differs from the same frames of the whole clip; only norm='frame' avoids "
                "that, and it needs weights that were trained with it"
            )
        if self.pad_mode == "reflect":
            return (
                "pad_mode='reflect' shows frame 0 the frames after it, which may be in a later "
                "piece; 'first' and 'constant' do not"
            )
        return None

    def _piece(self, state: StreamState | None) -> Stream:
        if (reason := self.why_not_streamable) is not None:
            raise ValueError(f"this network cannot take a clip in pieces: {reason}")
        return Stream(self, state)


def activated_conv(
    norm: GroupNorm | SpatialNorm,
    conv: nn.Module,
    x: Tensor,
    zq: Tensor | None,
    *stream: Stream | None,
) -> Tensor:
    """Norm, SiLU and convolution: what all blocks of this family consist of."""
    if isinstance(conv, CausalConv3d) and isinstance(norm, GroupNorm) and zq is None:
        return conv.of_silu(norm, x, *stream)
    y: Tensor = conv(silu(normalized(norm, x, zq, *stream)), *stream)
    return y


def residual(x: Tensor, h: Tensor) -> Tensor:
    """``x + h``; for clips written over ``h``, which nothing else uses, if no gradient needs it."""
    if torch.is_grad_enabled() or x.ndim == 4:
        return x + h
    # In place, a wider ``x`` takes less memory and time than PyTorch's sum of two types.
    return h.to(torch.promote_types(x.dtype, h.dtype)).add_(x)


class ResnetBlock(nn.Module):
    """Two rounds of norm, SiLU and 3x3 convolution, added to the input.

    Where the number of channels changes, the input passes through a 1x1 convolution, or a 3x3 one
    (``conv_shortcut``). ``temb_channels`` is the width of an embedding, such as that of a
    timestep, which is added between the rounds, 0 for none. With ``zq_ch`` the norms read the
    latent. The last three arguments are for ``ResnetBlock3D``.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int | None = None,
        conv_shortcut: bool = False,
        dropout: float,
        temb_channels: int = 512,
        zq_ch: int | None = None,
        add_conv: bool = False,
        make_norm: Callable[..., Any] = block_norm,
        make_conv: Callable[..., Any] = same_conv2d,
        make_nin: Callable[..., Any] = same_conv2d,
    ) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        self.norm1 = make_norm(in_channels, zq_ch, add_conv)
        self.conv1 = make_conv(in_channels, out_channels, 3)
        self.temb_proj = nn.Linear(temb_channels, out_channels) if temb_channels > 0 else None
        self.norm2 = make_norm(out_channels, zq_ch, add_conv)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = make_conv(out_channels, out_channels, 3)
        # Two keys, which say what kind of convolution the weights are for.
        self.conv_shortcut = self.nin_shortcut = None
        if in_channels != out_channels:
            if conv_shortcut:
                self.conv_shortcut = make_conv(in_channels, out_channels, 3)
            else:
                self.nin_shortcut = make_nin(in_channels, out_channels, 1)

    def forward(
        self,
        x: Tensor,
        temb: Tensor | None = None,
        zq: Tensor | None = None,
        *stream: Stream | None,
    ) -> Tensor:
        """(B, C_in, ...), with temb (B, temb_channels) -> (B, C_out, ...)."""
        h = activated_conv(self.norm1, self.conv1, x, zq, *stream)
        if temb is not None:
            if self.temb_proj is None:
                raise ValueError(
                    "this block was built with temb_channels=0 and cannot use an embedding: leave "
                    "temb out"
                )
            projected = self.temb_proj(silu(temb))  # of one image for all, or of each
            h = h + projected.view(*projected.shape, *[1] * (h.ndim - 2))
        if self.training and self.dropout.p:
            h = self.conv2(self.dropout(silu(normalized(self.norm2, h, zq, *stream))), *stream)
        else:
            h = activated_conv(self.norm2, self.conv2, h, zq, *stream)
        return residual(self._shortcut(x, *stream), h)

    def _shortcut(self, x: Tensor, *stream: Stream | None) -> Tensor:
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x, *stream)
        elif self.nin_shortcut is not None:
            x = self.nin_shortcut(x)
        return x


class ResnetBlock3D(ResnetBlock):
    """``ResnetBlock`` of clips, with causal 3x3x3 convolutions."""

    def __init__(
        self, *, pad_mode: PadMode = "constant", norm: Norm = "clip", **arguments: Any
    ) -> None:
        super().__init__(
            make_norm=partial(block_norm, norm=norm, make_spatial=SpatialNorm3D),
            make_conv=partial(CausalConv3d, pad_mode=pad_mode),
            make_nin=Conv3d,
            **arguments,
        )

    def forward(
        self,
        x: Tensor,
        temb: Tensor | None = None,
        zq: Tensor | None = None,
        *stream: Stream | None,
    ) -> Tensor:
        """See ``ResnetBlock``.

        On GPUs PyTorch adds the bias of a convolution in a pass over its whole result. Here the
        norm that follows adds it, or the residual sum, and a tensor is freed once it was read.
        """
        is_plain = temb is not None or zq is not None or (self.training and self.dropout.p)
        if is_plain or not is_fused(x) or gpu_kernels(x) is None:
            return super().forward(x, temb, zq, *stream)
        piece = stream[0] if stream else None
        h = self.conv1.conv(self.conv1.silu_input(self.norm1, x, piece), with_bias=False)
        h = self.conv2.silu_input(self.norm2, h, piece, self.conv1.conv.bias)
        h = self.conv2.conv(h, with_bias=False)
        y: Tensor = self.norm1.residual(self._shortcut(x, *stream), h, self.conv2.conv.bias)
        return y


class AttnBlock(nn.Module):
    """Single-head attention among the positions of an image, added to the input.

    With ``zq_ch`` the norm before it reads the latent. The products of queries and keys are only
    formed with their scale of C^-0.5, so they overflow float16 later than unscaled ones.
    """

    spatial_norm = SpatialNorm

    def __init__(
        self,
        in_channels: int,
        zq_ch: int | None = None,
        add_conv: bool = False,
        *,
        norm: Norm = "clip",
    ) -> None:
        super().__init__()
        self.norm = block_norm(in_channels, zq_ch, add_conv, norm, self.spatial_norm)
        self.q = Conv2d(in_channels, in_channels, 1)
        self.k = Conv2d(in_channels, in_channels, 1)
        self.v = Conv2d(in_channels, in_channels, 1)
        self.proj_out = Conv2d(in_channels, in_channels, 1)

    def forward(self, x: Tensor, zq: Tensor | None = None, *stream: Stream | None) -> Tensor:
        """(B, C, H, W), or (B, C, T, H, W) -> the same shape."""
        h = as_weights(self.q, normalized(self.norm, x, zq, *stream))
        q, k, v = (conv(h).flatten(-2).movedim(1, -1) for conv in (self.q, self.k, self.v))
        if x.ndim == 4:  # PyTorch's fused kernels take four dimensions: one head, or the frames
            q, k, v = (one.unsqueeze(1) for one in (q, k, v))
        h = attention(q, k, v).movedim(-1, 1)
        return residual(x, self.proj_out(h.reshape(x.shape)))


class AttnBlock2D(AttnBlock):
    """``AttnBlock`` of each frame of a clip.

    Frames do not attend to each other, but the norm before it may span them.
    """

    spatial_norm = SpatialNorm3D


class Downsample(nn.Module):
    """Halves rows and columns, rounding down.

    By a strided 3x3 convolution padded right and below, or by averaging (``with_conv=False``).
    """

    def __init__(self, in_channels: int, with_conv: bool) -> None:
        super().__init__()
        self.conv = Conv2d(in_channels, in_channels, 3, stride=2) if with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H // 2, W // 2)."""
        if self.conv is None:
            return F.avg_pool2d(x, 2)
        y: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return y


class Upsample(nn.Module):
    """Doubles rows and columns by repetition; then, ``with_conv``, a 3x3 convolution."""

    def __init__(self, in_channels: int, with_conv: bool) -> None:
        super().__init__()
        self.conv = Conv2d(in_channels, in_channels, 3, padding=1) if with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W)."""
        # 3D with a factor of one, so that frames need not be folded into the batch.
        x = F.interpolate(x, scale_factor=2.0 if x.ndim == 4 else (1.0, 2.0, 2.0))
        return x if self.conv is None else self.conv(x)


class DownSample3D(nn.Module):
    """Halves rows and columns; with ``compress_time`` also the frames after the first.

    Time goes first: frame 0 is kept, the others are averaged in pairs, and an odd one at the
    end is dropped. Then space, by a strided 3x3 convolution padded right and below, or by
    averaging (``with_conv=False``, where ``out_channels`` has no effect).
    """

    def __init__(
        self,
        in_channels: int,
        with_conv: bool,
        compress_time: bool = False,
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.compress_time = compress_time
        out_channels = in_channels if out_channels is None else out_channels
        self.conv = Conv2d(in_channels, out_channels, 3, stride=2) if with_conv else None

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """(B, C, T, H, W) -> (B, C, 1 + (T-1)//2 or T, H//2, W//2), with T not 2 if compressing.

        A later piece of a stream returns T/2 frames.
        """
        kept = frames = x.shape[2]
        if self.compress_time:
            kept = 1 if stream is None or stream.is_first else 0
            if frames < kept or (frames == 2 if stream is None else (frames - kept) % 2):
                raise ValueError(
                    f"{frames} frames are not {kept} plus whole pairs, so the last has nothing to "
                    "be averaged with: cut or repeat frames to fit"
                )
        if self.conv is None:
            x = self._pooled(x, kept, margin=0)
            pooled: Tensor = F.avg_pool2d(x.flatten(1, 2), 2).unflatten(1, x.shape[1:3])
            return pooled
        y: Tensor = self.conv(self._pooled(x, kept, margin=1))
        return y

    @staticmethod
    def _pooled(x: Tensor, kept: int, margin: int) -> Tensor:
        """``kept`` frames as they are, then means of pairs; zeros to the right and below.

        Written once, to where the convolution reads it. Plain arithmetic keeps the memory layout,
        and avg_pool3d has no bfloat16 on CPUs.
        """
        clips, channels, frames, height, width = x.shape
        pairs = (frames - kept) // 2
        y = torch.empty(
            (clips, channels, kept + pairs, height + margin, width + margin),
            dtype=x.dtype,
            device=x.device,
            memory_format=torch.channels_last_3d,
        )
        y[:, :, :, height:] = 0
        y[..., width:] = 0
        inner = y[..., :height, :width]
        inner[:, :, :kept] = x[:, :, :kept]
        end = kept + 2 * pairs
        if pairs and torch.is_grad_enabled():
            inner[:, :, kept:] = (x[:, :, kept:end:2] + x[:, :, kept + 1 : end : 2]).mul_(0.5)
        elif pairs:
            means = inner[:, :, kept:]
            torch.add(x[:, :, kept:end:2], x[:, :, kept + 1 : end : 2], out=means).mul_(0.5)
        return y


class Upsample3D(Upsample):
    """``Upsample`` of every frame, with ``compress_time`` after doubling those after the first."""

    def __init__(self, in_channels: int, with_conv: bool, compress_time: bool = False) -> None:
        super().__init__(in_channels, with_conv)
        self.compress_time = compress_time

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """(B, C, T, H, W) -> (B, C, 2T-1 if compressing else T, 2H, 2W).

        A later piece of a stream returns 2T frames.
        """
        if self.compress_time:
            kept = 1 if stream is None or stream.is_first else 0
            repeated = x[:, :, kept:].repeat_interleave(2, dim=2)
            x = torch.cat([x[:, :, :kept], repeated], dim=2)
        return super().forward(x)
