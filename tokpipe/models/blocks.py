"""The blocks of the 3D encoder and decoder. Attribute names are state_dict keys: an interface.

Shape letters: B clips, C channels, T frames, H rows, W columns. ``zq`` is the quantized latent
(B, C_zq, t, h, w) that a decoder's norms read, and None in an encoder. ``stream`` is passed where
the input is one piece of a clip. Source: CogVideo's ``movq_enc_3d`` and ``movq_dec_3d``, whose
classes of the same name are merged here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokpipe.models.activation import silu
from tokpipe.models.attention import attention
from tokpipe.models.blocks_2d import ADD_CONV_WITHOUT_ZQ, ZQ_MISSING, with_embedding
from tokpipe.models.causal_conv import CausalConv3d, PadMode
from tokpipe.models.convolution import Conv3d, FrameConv, as_weights
from tokpipe.models.group_norm import GroupNorm, Norm, group_norm, norm_class
from tokpipe.models.levels import Pyramid
from tokpipe.models.norm_3d import SpatialNorm3D
from tokpipe.models.rows import add_rows
from tokpipe.models.streaming import Stream, why_not_streamable


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
        return why_not_streamable(self.norm, self.pad_mode)


def block_norm(
    channels: int, zq_ch: int | None, add_conv: bool, norm: Norm
) -> GroupNorm | SpatialNorm3D:
    """An encoder's plain norm, or with ``zq_ch`` a decoder's, which reads the latent.

    The convolution of ``add_conv`` sees zeros before frame 0 whatever the decoder's pad mode: the
    published blocks do not pass it on.
    """
    if zq_ch is not None:
        norm_layer = norm_class(norm)
        return SpatialNorm3D(
            channels, zq_ch, norm_layer, add_conv=add_conv, num_groups=32, eps=1e-6
        )
    if add_conv:
        raise ValueError(ADD_CONV_WITHOUT_ZQ)
    return group_norm(channels, norm)


def normalized(
    norm: GroupNorm | SpatialNorm3D, x: Tensor, zq: Tensor | None, stream: Stream | None
) -> Tensor:
    """Apply either kind of ``block_norm``."""
    if isinstance(norm, GroupNorm):
        return norm(x)  # type: ignore[no-any-return]
    if zq is None:
        raise ValueError(ZQ_MISSING)
    return norm(x, zq, stream)  # type: ignore[no-any-return]


def activated_conv(
    norm: GroupNorm | SpatialNorm3D,
    conv: CausalConv3d,
    x: Tensor,
    zq: Tensor | None,
    stream: Stream | None,
) -> Tensor:
    """Norm, SiLU and causal convolution: what all blocks of this family consist of."""
    if isinstance(norm, GroupNorm):
        return conv.of_silu(norm, x, stream)
    y: Tensor = conv(silu(normalized(norm, x, zq, stream)), stream)
    return y


def residual(x: Tensor, h: Tensor) -> Tensor:
    """``x + h``; written over ``h``, which nothing else uses, where no gradient needs it."""
    if torch.is_grad_enabled():
        return x + h
    if x.dtype == h.dtype:
        return h.add_(x)
    is_in_rows = x.device.type == "cpu" and x.movedim(1, -1).is_contiguous()
    return add_rows(x, h) if is_in_rows and x.stride() == h.stride() else x + h


class ResnetBlock3D(nn.Module):
    """Two rounds of norm, SiLU and causal convolution, added to the input.

    Where the number of channels changes, the input passes through a 1x1x1 convolution, or a causal
    3x3x3 one (``conv_shortcut``). ``temb_channels`` is the width of an embedding that is added
    between the rounds, 0 for none. With ``zq_ch`` the norms read the latent.
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
        pad_mode: PadMode = "constant",
        norm: Norm = "clip",
    ) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        self.norm1 = block_norm(in_channels, zq_ch, add_conv, norm)
        self.conv1 = CausalConv3d(in_channels, out_channels, 3, pad_mode)
        self.temb_proj = nn.Linear(temb_channels, out_channels) if temb_channels > 0 else None
        self.norm2 = block_norm(out_channels, zq_ch, add_conv, norm)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = CausalConv3d(out_channels, out_channels, 3, pad_mode)
        self.conv_shortcut: CausalConv3d | None = None
        self.nin_shortcut: Conv3d | None = None
        if in_channels != out_channels:
            if conv_shortcut:
                self.conv_shortcut = CausalConv3d(in_channels, out_channels, 3, pad_mode)
            else:
                self.nin_shortcut = Conv3d(in_channels, out_channels, kernel_size=1)

    def forward(
        self,
        x: Tensor,
        temb: Tensor | None = None,
        zq: Tensor | None = None,
        stream: Stream | None = None,
    ) -> Tensor:
        """(B, C_in, T, H, W), with temb (B, temb_channels) -> (B, C_out, T, H, W).

        Raises:
            ValueError: ``temb`` for a block without ``temb_channels``, or no ``zq`` for one with
                ``zq_ch``.
        """
        h = activated_conv(self.norm1, self.conv1, x, zq, stream)
        h = with_embedding(h, temb, self.temb_proj)
        if self.training and self.dropout.p:
            h = self.conv2(self.dropout(silu(normalized(self.norm2, h, zq, stream))), stream)
        else:
            h = activated_conv(self.norm2, self.conv2, h, zq, stream)
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x, stream)
        elif self.nin_shortcut is not None:
            x = self.nin_shortcut(x)
        return residual(x, h)


class AttnBlock2D(nn.Module):
    """Single-head attention among the positions of each frame, added to the input.

    Frames do not attend to each other, but the norm before it may span them. With ``zq_ch`` that
    norm reads the latent.
    """

    def __init__(
        self,
        in_channels: int,
        zq_ch: int | None = None,
        add_conv: bool = False,
        *,
        norm: Norm = "clip",
    ) -> None:
        super().__init__()
        self.norm = block_norm(in_channels, zq_ch, add_conv, norm)
        self.q = FrameConv(in_channels, in_channels, kernel_size=1)
        self.k = FrameConv(in_channels, in_channels, kernel_size=1)
        self.v = FrameConv(in_channels, in_channels, kernel_size=1)
        self.proj_out = FrameConv(in_channels, in_channels, kernel_size=1)

    def forward(self, x: Tensor, zq: Tensor | None = None, stream: Stream | None = None) -> Tensor:
        """(B, C, T, H, W) -> the same shape."""
        h = as_weights(self.q, normalized(self.norm, x, zq, stream))
        # (B, T, H*W, C), so that frames take the place of heads; the scale is C^-0.5.
        q, k, v = (conv(h).flatten(3).permute(0, 2, 3, 1) for conv in (self.q, self.k, self.v))
        h = attention(q, k, v).permute(0, 3, 1, 2)
        return residual(x, self.proj_out(h.reshape(x.shape)))


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
        self.conv = FrameConv(in_channels, out_channels, 3, stride=2) if with_conv else None

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """(B, C, T, H, W) -> (B, C, 1 + (T-1)//2 or T, H//2, W//2), with T not 2 if compressing.

        A later piece of a stream returns T/2 frames.

        Raises:
            ValueError: two frames, of which the second does not fill a pair, or a piece that ends
                within a pair.
        """
        kept = self._kept_frames(x.shape[2], stream) if self.compress_time else x.shape[2]
        if self.conv is None:
            x = self._pooled(x, kept, margin=0)
            pooled: Tensor = F.avg_pool2d(x.flatten(1, 2), 2).unflatten(1, x.shape[1:3])
            return pooled
        y: Tensor = self.conv(self._pooled(x, kept, margin=1))
        return y

    @staticmethod
    def _kept_frames(frames: int, stream: Stream | None) -> int:
        """How many frames are kept, before those that are averaged in pairs."""
        kept = 1 if stream is None or stream.is_first else 0
        if frames < kept or (frames == 2 if stream is None else (frames - kept) % 2):
            raise ValueError(
                f"{frames} frames are not {kept} plus whole pairs, so the last has nothing to be "
                "averaged with: cut or repeat frames to fit"
            )
        return kept

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
        if pairs:
            inner[:, :, kept:] = (x[:, :, kept:end:2] + x[:, :, kept + 1 : end : 2]).mul_(0.5)
        return y


class Upsample3D(nn.Module):
    """Doubles rows and columns by repetition; with ``compress_time`` also frames after the first.

    Then, ``with_conv``, a 3x3 convolution of every frame.
    """

    def __init__(self, in_channels: int, with_conv: bool, compress_time: bool = False) -> None:
        super().__init__()
        self.compress_time = compress_time
        self.conv = FrameConv(in_channels, in_channels, 3, padding=1) if with_conv else None

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """(B, C, T, H, W) -> (B, C, 2T-1 if compressing else T, 2H, 2W).

        A later piece of a stream returns 2T frames.
        """
        if self.compress_time:
            kept = 1 if stream is None or stream.is_first else 0
            repeated = x[:, :, kept:].repeat_interleave(2, dim=2)
            x = torch.cat([x[:, :, :kept], repeated], dim=2)
        # 3D with a factor of one, so that frames need not be folded into the batch.
        x = F.interpolate(x, scale_factor=(1.0, 2.0, 2.0))
        if self.conv is not None:
            x = self.conv(x)
        return x
