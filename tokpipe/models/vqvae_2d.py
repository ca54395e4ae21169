"""The 2D encoder and decoder of the CogVideo VQ-VAE and MoVQ family: images, or frames one by one.

Shape letters: B images, C channels, H rows, W columns; s is ``2 ** (len(ch_mult) - 1)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tokpipe.models.activation import silu
from tokpipe.models.blocks_2d import (
    AttnBlock,
    Downsample,
    ResnetBlock,
    Upsample,
    block_norm,
    normalized,
)
from tokpipe.models.convolution import Conv2d

Keep = Callable[[str, Tensor], object]
"""Takes each activation, by its published name, as it is made."""


class Encoder(nn.Module):
    """Images to latents: each level but the last halves rows and columns.

    Arguments and state_dict keys are the published ones, so public checkpoints load as they
    are. ``resolution`` is nominal: it decides at which level ``attn_resolutions`` put attention
    (one that no level has puts none), and images of any size are taken. The coarsest level has
    attention in its middle always. ``out_ch`` belongs to the decoder that shares these arguments
    and changes nothing here. ``double_z`` gives ``2 * z_channels``, mean and log-variance, for
    tokenizers without a codebook.

    An image's latent does not depend on the others of its batch. Sizes that are no multiples of
    ``s`` are rounded down, as published: 33 rows give the latent rows of 32, whose last sees the
    33rd, and a decoder gives 32 back.
    Source: arXiv:2012.09841, as CogVideo's ``vqvae_blocks.Encoder``.

    Raises:
        ValueError: no level, no block, or channels that are no multiples of 32.
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
    ) -> None:
        super().__init__()
        _check_levels(ch_mult, num_res_blocks)
        self.spatial_stride: int = 2 ** (len(ch_mult) - 1)
        self.conv_in = Conv2d(in_channels, ch, 3, padding=1)
        self.down = nn.ModuleList()
        channels = ch
        for level, mult in enumerate(ch_mult):
            down = DownLevel2D(
                channels,
                ch * mult,
                num_blocks=num_res_blocks,
                attention=resolution // 2**level in attn_resolutions,
                dropout=dropout,
            )
            last = level == len(ch_mult) - 1
            down.downsample = None if last else Downsample(ch * mult, resamp_with_conv)
            self.down.append(down)
            channels = ch * mult
        self.mid = MidBlocks2D(channels, dropout=dropout)
        self.norm_out = block_norm(channels, None, add_conv=False)
        self.conv_out = Conv2d(channels, 2 * z_channels if double_z else z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) in [-1, 1] -> (B, z or 2z, H // s, W // s).

        Raises:
            ValueError: images of another shape or dtype, or of fewer rows or columns than ``s``.
        """
        return self._encode(x, drop)

    def forward_with_features_output(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What ``forward`` gives, and every activation on the way to it, in order.

        Their names are the published ones: ``conv_in``, ``down{level}_block{block}``,
        ``down{level}_attn{block}``, ``down{level}_downsample``, ``mid_block_1``, ``mid_attn_1``,
        ``mid_block_2``, ``norm_out``, ``nonlinearity``, ``conv_out``.
        """
        features: dict[str, Tensor] = {}
        return self._encode(x, features.__setitem__), features

    def _encode(self, x: Tensor, keep: Keep) -> Tensor:
        check_input(x, self.conv_in, "x")
        check_size(x, self.spatial_stride)
        h: Tensor = self.conv_in(x)
        keep("conv_in", h)
        for i, level in enumerate(self.down):
            assert isinstance(level, DownLevel2D)
            for j, block in enumerate(level.block):
                h = block(h)
                keep(f"down{i}_block{j}", h)
                if level.attn:
                    h = level.attn[j](h)
                    keep(f"down{i}_attn{j}", h)
            if level.downsample is not None:
                h = level.downsample(h)
                keep(f"down{i}_downsample", h)
        h = self.mid(h, None, keep)
        h = normalized(self.norm_out, h, None)
        keep("norm_out", h)
        h = silu(h)
        keep("nonlinearity", h)
        h = self.conv_out(h)
        keep("conv_out", h)
        return h


class BaseDecoder2D(nn.Module):
    """What the plain decoder and MoVQ's have in common, which is all but ``zq``."""

    def __init__(
        self,
        *,
        ch: int,
        out_ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        dropout: float,
        resamp_with_conv: bool,
        resolution: int,
        z_channels: int,
        give_pre_end: bool,
        zq_ch: int | None,
        add_conv: bool,
    ) -> None:
        super().__init__()
        _check_levels(ch_mult, num_res_blocks + 1)
        self.spatial_stride: int = 2 ** (len(ch_mult) - 1)
        self.give_pre_end = give_pre_end
        channels = ch * ch_mult[-1]
        self.conv_in = Conv2d(z_channels, channels, 3, padding=1)
        self.mid = MidBlocks2D(channels, dropout=dropout, zq_ch=zq_ch, add_conv=add_conv)
        coarsest = len(ch_mult) - 1
        levels = []
        for level in reversed(range(len(ch_mult))):
            out_channels = ch * ch_mult[level]
            # Doubled from the coarsest, as published: halves lost on the way down stay lost.
            size = resolution // 2**coarsest * 2 ** (coarsest - level)
            up = UpLevel2D(
                channels,
                out_channels,
                num_blocks=num_res_blocks + 1,
                attention=size in attn_resolutions,
                dropout=dropout,
                zq_ch=zq_ch,
                add_conv=add_conv,
            )
            up.upsample = Upsample(out_channels, resamp_with_conv) if level else None
            levels.append(up)
            channels = out_channels
        self.up = nn.ModuleList(reversed(levels))  # by published key, up.0 is the finest
        self.norm_out = block_norm(channels, zq_ch, add_conv)
        self.conv_out = Conv2d(channels, out_ch, 3, padding=1)

    def _decode(self, z: Tensor, zq: Tensor | None, keep: Keep) -> Tensor:
        check_input(z, self.conv_in, "z")
        h: Tensor = self.conv_in(z)
        keep("conv_in", h)
        h = self.mid(h, zq, keep)
        for i, level in reversed(list(enumerate(self.up))):
            assert isinstance(level, UpLevel2D)
            for j, block in enumerate(level.block):
                h = block(h, None, zq)
                keep(f"up_{i}_block_{j}", h)
                if level.attn:
                    h = level.attn[j](h, zq)
                    keep(f"up_{i}_attn_{j}", h)
            if level.upsample is not None:
                h = level.upsample(h)
                keep(f"up_{i}_upsample", h)
        if self.give_pre_end:
            return h
        h = normalized(self.norm_out, h, zq)
        keep("norm_out", h)
        h = silu(h)
        keep("nonlinearity", h)
        h = self.conv_out(h)
        keep("conv_out", h)
        return h


class Decoder(BaseDecoder2D):
    """Latents to images: each level but the last doubles rows and columns.

    Arguments and state_dict keys are the published ones, so public checkpoints load as they are.
    ``resolution`` is nominal: it decides at which level ``attn_resolutions`` put attention (one
    that no level has puts none), and latents of any size are taken. ``in_channels`` and
    ``double_z`` belong to the encoder that shares these arguments and change nothing here.
    ``give_pre_end`` returns the ``ch * ch_mult[0]`` features before the last norm.

    An image does not depend on the other latents of its batch.
    Source: arXiv:2012.09841, as CogVideo's ``vqvae_blocks.Decoder``.

    Raises:
        ValueError: no level, no block, or channels that are no multiples of 32.
    """

    def __init__(
        self,
        *,
        ch: int,
        out_ch: int,
        ch_mult: Sequence[int] = (1, 2, 4, 8),
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        dropout: float = 0.0,
        resamp_with_conv: bool = True,
        in_channels: int | None = None,
        resolution: int,
        z_channels: int,
        double_z: bool | None = None,
        give_pre_end: bool = False,
    ) -> None:
        super().__init__(
            ch=ch,
            out_ch=out_ch,
            ch_mult=ch_mult,
            num_res_blocks=num_res_blocks,
            attn_resolutions=attn_resolutions,
            dropout=dropout,
            resamp_with_conv=resamp_with_conv,
            resolution=resolution,
            z_channels=z_channels,
            give_pre_end=give_pre_end,
            zq_ch=None,
            add_conv=False,
        )

    def forward(self, z: Tensor) -> Tensor:
        """(B, z_channels, h, w) -> (B, out_ch, s * h, s * w), about [-1, 1], not clamped.

        Raises:
            ValueError: latents of another shape or dtype.
        """
        return self._decode(z, None, drop)

    def forward_with_features_output(self, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What ``forward`` gives, and every activation on the way to it, in order.

        Their names are those of the MoVQ decoder: ``conv_in``, ``mid_block_1``, ``mid_attn_1``,
        ``mid_block_2``, ``up_{level}_block_{block}``, ``up_{level}_attn_{block}``,
        ``up_{level}_upsample``, and without ``give_pre_end`` also ``norm_out``,
        ``nonlinearity``, ``conv_out``.
        """
        features: dict[str, Tensor] = {}
        return self._decode(z, None, features.__setitem__), features


class Level2D(nn.Module):
    """Residual blocks at one size, and as many attentions to follow them, or none."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_blocks: int,
        attention: bool,
        dropout: float,
        zq_ch: int | None = None,
        add_conv: bool = False,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * (num_blocks - 1)
        self.block = nn.ModuleList(
            ResnetBlock(
                in_channels=before,
                out_channels=out_channels,
                dropout=dropout,
                temb_channels=0,
                zq_ch=zq_ch,
                add_conv=add_conv,
            )
            for before in widths
        )
        self.attn = nn.ModuleList(
            AttnBlock(out_channels, zq_ch, add_conv) for _ in widths if attention
        )


class DownLevel2D(Level2D):
    """A level and the way down from it, which the coarsest lacks."""

    downsample: Downsample | None


class UpLevel2D(Level2D):
    """A level and the way up from it, which the finest lacks."""

    upsample: Upsample | None


class MidBlocks2D(nn.Module):
    """Attention between two residual blocks, at the coarsest size."""

    def __init__(
        self, channels: int, *, dropout: float, zq_ch: int | None = None, add_conv: bool = False
    ) -> None:
        super().__init__()
        blocks = [
            ResnetBlock(
                in_channels=channels,
                dropout=dropout,
                temb_channels=0,
                zq_ch=zq_ch,
                add_conv=add_conv,
            )
            for _ in range(2)
        ]
        self.block_1 = blocks[0]
        self.attn_1 = AttnBlock(channels, zq_ch, add_conv)
        self.block_2 = blocks[1]

    def forward(self, h: Tensor, zq: Tensor | None, keep: Keep) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        h = self.block_1(h, None, zq)
        keep("mid_block_1", h)
        h = self.attn_1(h, zq)
        keep("mid_attn_1", h)
        h = self.block_2(h, None, zq)
        keep("mid_block_2", h)
        return h


def drop(_name: str, _h: Tensor) -> None:
    """Keep no activation: each is freed when the next is there."""


def _check_levels(ch_mult: Sequence[int], num_blocks: int) -> None:
    if not ch_mult or num_blocks < 1:
        raise ValueError(
            f"ch_mult={list(ch_mult)} with {num_blocks} residual blocks per level leaves nothing "
            "to compute: give one level and one block at least"
        )


def check_input(x: Tensor, conv: Conv2d, name: str) -> None:
    """Refuse what ``conv``, which ``x`` goes into, would refuse less clearly, or mix up."""
    dtype = conv.weight.dtype
    fits = x.ndim == 4 and x.shape[1] == conv.in_channels and x.numel()
    if not fits or (x.dtype != dtype and not torch.is_autocast_enabled(x.device.type)):
        raise ValueError(
            f"{name} is {x.dtype} of {tuple(x.shape)}, but this module takes {dtype} of "
            f"(B, {conv.in_channels}, H, W), none of them 0: convert or reshape it"
        )


def check_size(x: Tensor, spatial_stride: int) -> None:
    """Refuse (B, C, H, W) images that an encoder would halve until nothing is left."""
    if min(x.shape[2:]) < spatial_stride:
        raise ValueError(
            f"images of {x.shape[2]}x{x.shape[3]} are halved to nothing: give at least "
            f"{spatial_stride} rows and columns, which make one position of the latent"
        )
