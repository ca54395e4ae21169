"""The causal 3D encoder of the CogVideo VQ-VAE and MoVQ family."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from tokpipe.models.blocks import AttnBlock2D, DownSample3D, ResnetBlock3D, group_norm
from tokpipe.models.causal_conv import CausalConv3d, PadMode


class Encoder3D(nn.Module):
    """Pixels to latents: each level but the last halves space, the first ones time as well.

    Arguments and state_dict keys are the published ones, so public checkpoints load as they
    are. ``resolution`` is nominal: it decides at which level ``attn_resolutions`` put attention
    (one that no level has puts none), and inputs of any size are taken. ``out_ch`` belongs to
    the decoder that shares these arguments and changes nothing here. ``double_z`` gives
    ``2 * z_channels``, mean and log-variance, for tokenizers without a codebook.

    One frame gives one latent frame, ``1 + r * j`` frames give ``1 + j``; other lengths from
    ``1 + r`` on lose the frames that fill no pair. With pad modes ``first`` and ``constant`` the
    convolutions are causal, but the norms span time: latents depend on the whole input.

    Raises:
        ValueError: ``temporal_compress_times`` is no power of two, or needs more levels.
    """

    def __init__(
        self,
        *,
        ch: int,
        out_ch: int | None = None,
        ch_mult: Sequence[int] = (1, 2, 4, 8),
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        dropout: float = 0.0,
        resamp_with_conv: bool = True,
        in_channels: int,
        resolution: int,
        z_channels: int,
        double_z: bool = True,
        pad_mode: PadMode = "first",
        temporal_compress_times: int = 4,
    ) -> None:
        super().__init__()
        self.temporal_stride = temporal_compress_times
        self.spatial_stride: int = 2 ** (len(ch_mult) - 1)
        powers = [2**level for level in range(len(ch_mult))]
        if temporal_compress_times not in powers:
            raise ValueError(
                f"temporal_compress_times={temporal_compress_times} cannot be reached by halving "
                f"at some of the {len(ch_mult) - 1} downsamplings: use one of {powers}"
            )

        self.conv_in = CausalConv3d(in_channels, ch, 3, pad_mode)
        self.down = nn.ModuleList()
        channels = ch
        for level, mult in enumerate(ch_mult):
            last = level == len(ch_mult) - 1
            self.down.append(
                DownLevel(
                    channels,
                    ch * mult,
                    num_res_blocks=num_res_blocks,
                    attention=resolution // 2**level in attn_resolutions,
                    downsample=None
                    if last
                    else DownSample3D(
                        ch * mult,
                        with_conv=resamp_with_conv,
                        compress_time=2**level < temporal_compress_times,
                    ),
                    dropout=dropout,
                    pad_mode=pad_mode,
                )
            )
            channels = ch * mult
        self.mid = MidBlocks(channels, dropout=dropout, pad_mode=pad_mode)
        self.norm_out = group_norm(channels)
        out = 2 * z_channels if double_z else z_channels
        self.conv_out = CausalConv3d(channels, out, 3, pad_mode)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, T, H, W) in [-1, 1] -> (B, z, 1 + (T-1)//r, H//s, W//s).

        Raises:
            ValueError: ``1 < T <= r``, which leaves a pooling layer with a single frame.
        """
        frames, stride = x.shape[2], self.temporal_stride
        if 1 < frames <= stride:
            raise ValueError(
                f"{frames} frames do not fill one latent frame after the first, which stands for "
                f"{stride}: give 1 frame, or repeat the last one up to {1 + stride}"
            )
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        h = self.mid(h)
        y: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return y


class DownLevel(nn.Module):
    """Residual blocks at one size, each followed by attention if asked, then the way down."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_res_blocks: int,
        attention: bool,
        downsample: DownSample3D | None,
        dropout: float,
        pad_mode: PadMode,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * num_res_blocks
        self.block = nn.ModuleList(
            ResnetBlock3D(before, out_channels, dropout=dropout, pad_mode=pad_mode)
            for before in widths[:-1]
        )
        self.attn = nn.ModuleList(
            AttnBlock2D(out_channels) if attention else nn.Identity() for _ in self.block
        )
        self.downsample = downsample if downsample is not None else nn.Identity()

    def forward(self, h: Tensor) -> Tensor:
        """(B, C_in, T, H, W) -> (B, C_out, T', H', W')."""
        for block, attn in zip(self.block, self.attn, strict=True):
            h = attn(block(h))
        y: Tensor = self.downsample(h)
        return y


class MidBlocks(nn.Module):
    """Two residual blocks at the coarsest size. The 3D family has no attention here."""

    def __init__(self, channels: int, *, dropout: float, pad_mode: PadMode) -> None:
        super().__init__()
        self.block_1 = ResnetBlock3D(channels, channels, dropout=dropout, pad_mode=pad_mode)
        self.block_2 = ResnetBlock3D(channels, channels, dropout=dropout, pad_mode=pad_mode)

    def forward(self, h: Tensor) -> Tensor:
        """(B, C, T, H, W) -> the same shape."""
        y: Tensor = self.block_2(self.block_1(h))
        return y
