"""The blocks that encoders are built of. Attribute names are state_dict keys: an interface.

Shape letters: B clips, C channels, T frames, H rows, W columns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokpipe.models.causal_conv import CausalConv3d, PadMode
from tokpipe.models.convolution import Conv3d, FrameConv


def group_norm(channels: int) -> nn.GroupNorm:
    """Norm over 32 channel groups and all of (T, H, W), so every frame sees the later ones.

    PyTorch takes the statistics in float32 whatever the dtype.
    """
    return nn.GroupNorm(num_groups=32, num_channels=channels, eps=1e-6)


class ResnetBlock3D(nn.Module):
    """Two rounds of norm, SiLU and causal convolution, added to the input.

    Where the number of channels changes, a 1x1x1 convolution carries the input over.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, dropout: float, pad_mode: PadMode
    ) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels, 3, pad_mode)
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = CausalConv3d(out_channels, out_channels, 3, pad_mode)
        if in_channels != out_channels:
            self.nin_shortcut: nn.Module = Conv3d(in_channels, out_channels, kernel_size=1)
        else:
            self.nin_shortcut = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, T, H, W) -> (B, C_out, T, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        y: Tensor = self.nin_shortcut(x) + h
        return y


class AttnBlock2D(nn.Module):
    """Single-head attention among the positions of each frame, added to the input.

    Frames do not attend to each other, but the norm before it spans them.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.norm = group_norm(in_channels)
        self.q = FrameConv(in_channels, in_channels, kernel_size=1)
        self.k = FrameConv(in_channels, in_channels, kernel_size=1)
        self.v = FrameConv(in_channels, in_channels, kernel_size=1)
        self.proj_out = FrameConv(in_channels, in_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> the same shape."""
        h = self.norm(x)
        # (B, T, H*W, C), so that frames take the place of heads; the scale is C^-0.5.
        q, k, v = (conv(h).flatten(3).permute(0, 2, 3, 1) for conv in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v).permute(0, 3, 1, 2)
        y: Tensor = self.proj_out(h.reshape(x.shape))
        return x + y


class DownSample3D(nn.Module):
    """Halves rows and columns; with ``compress_time`` also the frames after the first.

    Time goes first: frame 0 is kept, the others are averaged in pairs, and an odd one at the
    end is dropped. Then space, by a strided 3x3 convolution padded right and below, or by
    averaging (``with_conv=False``).
    """

    def __init__(self, in_channels: int, with_conv: bool, compress_time: bool) -> None:
        super().__init__()
        self.compress_time = compress_time
        self.conv = FrameConv(in_channels, in_channels, 3, stride=2) if with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C, 1 + (T-1)//2 or T, H//2, W//2), with T not 2 if compressing."""
        if self.compress_time and x.shape[2] > 1:
            # Plain arithmetic keeps the memory layout, and avg_pool3d has no bfloat16 on CPUs.
            pairs = (x.shape[2] - 1) // 2
            rest = (x[:, :, 1 : 2 * pairs : 2] + x[:, :, 2 : 2 * pairs + 1 : 2]) * 0.5
            x = torch.cat([x[:, :, :1], rest], dim=2)
        if self.conv is None:
            pooled: Tensor = F.avg_pool2d(x.flatten(1, 2), 2).unflatten(1, x.shape[1:3])
            return pooled
        y: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return y
