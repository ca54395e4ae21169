"""The blocks of encoders and decoders. Attribute names are state_dict keys: an interface.

Shape letters: B images or clips, C channels, T frames, H rows, W columns. ``zq`` is the quantized
latent (B, C_zq, h, w), or (B, C_zq, t, h, w), that the norms of a MoVQ decoder read, and None
elsewhere. ``stream`` is passed where the input is one piece of a clip. Source: CogVideo's
``vqvae_blocks``, ``movq_modules``, ``movq_enc_3d`` and ``movq_dec_3d``.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokpipe.models.arguments import takes
from tokpipe.models.causal_conv import CausalConv3d, PadMode
from tokpipe.models.group_norm import GroupNorm, Norm, gpu_kernels, is_fused
from tokpipe.models.operations import Conv2d, Conv3d, as_weights, attention, same_conv2d, silu
from tokpipe.models.spatial_norm import BlockNorm, block_norm, normalized
from tokpipe.models.streaming import Stream

AttnType = Literal["vanilla", "vanilla-xformers", "linear", "none"]


def silu_conv(
    norm: BlockNorm, conv: nn.Module, x: Tensor, zq: Tensor | None, *stream: Stream | None
) -> Tensor:
    """Norm, SiLU and convolution, of clips in few passes: what all blocks here consist of."""
    if not isinstance(conv, CausalConv3d):
        return conv(silu(normalized(norm, x, zq, *stream)), *stream)
    if isinstance(norm, GroupNorm) and zq is None and is_fused(x):
        return conv.conv(conv.silu_input(norm, x, *stream))
    # ``x`` may have a wider dtype than the convolution.
    return conv(as_weights(conv.conv, silu(normalized(norm, x, zq, *stream))), *stream)


def residual(x: Tensor, h: Tensor) -> Tensor:
    """``x + h``; for clips written over ``h``, which nothing else uses, if no gradient needs it."""
    if torch.is_grad_enabled() or x.ndim == 4:
        return x + h
    # In place, a wider ``x`` takes less memory and time than PyTorch's sum of two types.
    return h.to(torch.promote_types(x.dtype, h.dtype)).add_(x)


class ResnetBlock(nn.Module):
    """Two rounds of norm, SiLU and 3x3 convolution, added to the input.

    Where the number of channels changes, the input passes a 1x1 convolution (``conv_shortcut``:
    3x3). An embedding of ``temb_channels`` is added between rounds. ``zq_ch``: norms read ``zq``.
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
        make_nin: Callable[..., Any] | None = None,
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
                self.nin_shortcut = (make_nin or make_conv)(in_channels, out_channels, 1)

    def forward(
        self,
        x: Tensor,
        temb: Tensor | None = None,
        zq: Tensor | None = None,
        *stream: Stream | None,
    ) -> Tensor:
        """(B, C_in, ...), with temb (B, temb_channels) -> (B, C_out, ...)."""
        h = silu_conv(self.norm1, self.conv1, x, zq, *stream)
        if temb is not None:
            if self.temb_proj is None:
                raise ValueError("a block with temb_channels=0 takes no embedding: leave temb out")
            projected = self.temb_proj(silu(temb))  # of one image for all, or of each
            h = h + projected.view(*projected.shape, *[1] * (h.ndim - 2))
        if self.training and self.dropout.p:
            h = self.conv2(self.dropout(silu(normalized(self.norm2, h, zq, *stream))), *stream)
        else:
            h = silu_conv(self.norm2, self.conv2, h, zq, *stream)
        return residual(self._shortcut(x, *stream), h)

    def _shortcut(self, x: Tensor, *stream: Stream | None) -> Tensor:
        if self.conv_shortcut is not None:
            return self.conv_shortcut(x, *stream)
        return x if self.nin_shortcut is None else self.nin_shortcut(x)


class ResnetBlock3D(ResnetBlock):
    """``ResnetBlock`` of clips, with causal 3x3x3 convolutions."""

    @takes(as_well_as=ResnetBlock)
    def __init__(
        self,
        *,
        pad_mode: PadMode = "constant",
        norm: Norm = "clip",
        add_conv_pad_mode: PadMode = "constant",
        **arguments: Any,
    ) -> None:
        super().__init__(
            make_norm=partial(block_norm, norm=norm, add_conv_pad_mode=add_conv_pad_mode),
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
        is_plain = temb is not None or zq is not None or (self.training and self.dropout.p)
        if is_plain or not is_fused(x) or gpu_kernels(x) is None:
            return super().forward(x, temb, zq, *stream)
        # On GPUs PyTorch adds the bias of a convolution in a pass over its whole result. Here the
        # norm that follows adds it, or the residual sum, and a tensor is freed once it was read.
        h = self.conv1.conv(self.conv1.silu_input(self.norm1, x, *stream), with_bias=False)
        h = self.conv2.silu_input(self.norm2, h, *stream, bias=self.conv1.conv.bias)
        h = self.conv2.conv(h, with_bias=False)
        bias = self.conv2.conv.bias
        if self.nin_shortcut is None:
            x = self._shortcut(x, *stream)
        else:
            x, bias = self.nin_shortcut(x, with_bias=False), bias + self.nin_shortcut.bias
        return self.norm1.residual(x, h, bias)


class AttnBlock(nn.Module):
    """Adds single-head attention among an image's positions. ``zq_ch``: its norm reads ``zq``."""

    pad_mode: PadMode | None = None

    def __init__(
        self,
        in_channels: int,
        zq_ch: int | None = None,
        add_conv: bool = False,
        *,
        norm: Norm = "clip",
        add_conv_pad_mode: PadMode | None = None,
        make_norm: Callable[..., Any] = block_norm,
    ) -> None:
        super().__init__()
        self.norm = make_norm(
            in_channels, zq_ch, add_conv, norm, add_conv_pad_mode or self.pad_mode
        )
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
    """``AttnBlock`` of each frame of a clip alone, but for the norm before it."""

    pad_mode = "constant"


def make_attn(
    in_channels: int,
    attn_type: str = "vanilla",
    *,
    zq_ch: int | None = None,
    add_conv: bool = False,
) -> nn.Module:
    """Return the attention named ``attn_type``, (B, in_channels, H, W) -> the same shape.

    - ``vanilla``, ``vanilla-xformers``: ``AttnBlock``, whose norm reads a latent with ``zq_ch``.
    - ``linear``: one head of ``LinearAttention``, which has neither norm nor residual.
    - ``none``: the input, unchanged.

    Others raise ValueError. Published code mistakes ``memory-efficient-cross-attn`` for linear.
    """
    if attn_type in ("vanilla", "vanilla-xformers"):
        return AttnBlock(in_channels, zq_ch, add_conv)
    if zq_ch is not None:
        raise ValueError(f"{attn_type=} has no norm to read the latent of {zq_ch=}: use 'vanilla'")
    if attn_type == "linear":
        return LinearAttention(in_channels, heads=1, dim_head=in_channels)
    if attn_type == "none":
        return nn.Identity()
    raise ValueError(f"{attn_type=}: use 'vanilla', 'vanilla-xformers', 'linear' or 'none'")


class LinearAttention(nn.Module):
    """Attention whose cost grows with the number N of positions instead of its square.

    Keys are normalized over the positions and weight the values into one (dim_head, dim_head)
    matrix per head, which every query reads. There is no norm, scale or residual, so magnitudes
    and rounding errors grow: after five layers, float32 is accurate to 2e-4, as in published code.
    Source: Efficient Attention, arXiv:1812.01243, without the normalization of queries;
    arguments and keys as in CogVideo's ``sgm.modules.attention.LinearAttention``.
    """

    def __init__(self, dim: int, heads: int = 4, dim_head: int = 32) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = Conv2d(dim, 3 * heads * dim_head, 1, bias=False)
        self.to_out = Conv2d(heads * dim_head, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) -> the same shape."""
        qkv = self.to_qkv(x).flatten(2).unflatten(1, (3, self.heads, -1))
        q, k, v = qkv.unbind(1)  # each (B, heads, dim_head, N)
        context = v @ k.softmax(dim=-1).transpose(-1, -2)  # values x keys
        return self.to_out((context @ q).flatten(1, 2).unflatten(-1, x.shape[2:]))


class Downsample(nn.Module):
    """Halves rows and columns, rounded down: a 3x3 convolution padded right and below, or means."""

    def __init__(self, in_channels: int, with_conv: bool) -> None:
        super().__init__()
        self.conv = Conv2d(in_channels, in_channels, 3, stride=2) if with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H // 2, W // 2)."""
        return F.avg_pool2d(x, 2) if self.conv is None else self.conv(F.pad(x, (0, 1, 0, 1)))


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
    """``Downsample`` of every frame. ``compress_time`` keeps frame 0, averages later ones in pairs
    and drops an odd one at the end."""

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
        """(B, C, T, H, W) -> (B, C, T', H//2, W//2). T' is T or, if compressing, 1 + (T-1)//2,
        where T may not be 2, and T/2 in later pieces of a stream."""
        kept = frames = x.shape[2]
        if self.compress_time:
            kept = 1 if stream is None or stream.is_first else 0
            if frames < kept or (frames == 2 if stream is None else (frames - kept) % 2):
                raise ValueError(f"{frames} frames are not {kept} plus whole pairs: cut some")
        x = self._pooled(x, kept, margin=0 if self.conv is None else 1)
        if self.conv is None:
            return F.avg_pool2d(x.flatten(1, 2), 2).unflatten(1, x.shape[1:3])
        return self.conv(x)

    @staticmethod
    def _pooled(x: Tensor, kept: int, margin: int) -> Tensor:
        """``kept`` frames, then means of pairs; zeros to the right and below. Written once, to
        where the convolution reads it. avg_pool3d has no bfloat16 on CPUs."""
        clips, channels, frames, height, width = x.shape
        pairs = (frames - kept) // 2
        shape = clips, channels, kept + pairs, height + margin, width + margin
        y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)
        y[:, :, :, height:] = 0
        y[..., width:] = 0
        inner = y[..., :height, :width]
        inner[:, :, :kept] = x[:, :, :kept]
        first, second = x[:, :, kept : kept + 2 * pairs].unflatten(2, (pairs, 2)).unbind(3)
        if torch.is_grad_enabled():
            inner[:, :, kept:] = (first + second).mul_(0.5)
        elif gpu_kernels(x) is None:
            torch.add(first, second, out=inner[:, :, kept:]).mul_(0.5)
        else:  # one pass over memory
            torch.lerp(first, second, 0.5, out=inner[:, :, kept:])
        return y


class Upsample3D(Upsample):
    """``Upsample`` of every frame, with ``compress_time`` after doubling those after the first."""

    def __init__(self, in_channels: int, with_conv: bool, compress_time: bool = False) -> None:
        super().__init__(in_channels, with_conv)
        self.compress_time = compress_time

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """(B, C, T, H, W) -> (B, C, T', 2H, 2W). T' is T; compressing, 2T-1, in later pieces 2T."""
        if self.compress_time:
            kept = 1 if stream is None or stream.is_first else 0
            repeated = x[:, :, kept:].repeat_interleave(2, dim=2)
            x = torch.cat([x[:, :, :kept], repeated], dim=2)
        return super().forward(x)
