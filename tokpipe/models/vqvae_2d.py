"""The 2D encoder and decoder of the CogVideo VQ-VAE and MoVQ family: images, or frames one by one.

Shape letters: B images, C channels, H rows, W columns; s is ``2 ** (len(ch_mult) - 1)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

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
from tokpipe.models.levels import DownLevel, Factory, Keep, MidBlocks, Pyramid, UpLevel, drop


class BaseEncoder2D(nn.Module):
    """Images to latents, with a choice of attention."""

    def __init__(
        self,
        pyramid: Pyramid,
        *,
        in_channels: int,
        latent_channels: int,
        dropout: float,
        resamp_with_conv: bool,
        make_attn: Factory,
    ) -> None:
        super().__init__()
        make_block = partial(ResnetBlock, dropout=dropout, temb_channels=0)
        plans = pyramid.down()
        self.spatial_stride = pyramid.spatial_stride
        self.conv_in = Conv2d(in_channels, pyramid.ch, 3, padding=1)
        self.down = nn.ModuleList()
        for plan in plans:
            level = DownLevel(plan, make_block, make_attn)
            if plan is not plans[-1]:
                level.downsample = Downsample(plan.channels, resamp_with_conv)
            self.down.append(level)
        channels = plans[-1].channels
        self.mid = MidBlocks(channels, make_block, make_attn)
        self.norm_out = block_norm(channels, None, add_conv=False)
        self.conv_out = Conv2d(channels, latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) in [-1, 1] -> (B, z or 2z, H // s, W // s).

        Raises:
            ValueError: images of another shape or dtype, or with fewer than ``s`` rows or columns.
        """
        return self._encode(x, drop)

    def _encode(self, x: Tensor, keep: Keep) -> Tensor:
        check_input(x, self.conv_in, "x")
        if min(x.shape[2:]) < self.spatial_stride:
            raise ValueError(
                f"images of {x.shape[2]}x{x.shape[3]} are halved to nothing: pass at least "
                f"{self.spatial_stride} rows and columns, which make one position of the latent"
            )
        h: Tensor = self.conv_in(x)
        keep("conv_in", h)
        for i, level in enumerate(self.down):
            assert isinstance(level, DownLevel)
            for j, (block, attn) in enumerate(level.steps()):
                h = block(h, None)
                keep(f"down{i}_block{j}", h)
                if attn is not None:
                    h = attn(h)
                    keep(f"down{i}_attn{j}", h)
            if level.downsample is not None:
                h = level.downsample(h)
                keep(f"down{i}_downsample", h)
        return _finish(self.norm_out(self.mid(h, keep=keep)), self.conv_out, keep)


class Encoder(BaseEncoder2D):
    """Images to latents: each level but the last halves rows and columns.

    Arguments and state_dict keys are the published ones, so public checkpoints load unchanged.
    ``resolution`` is nominal: it only decides which levels ``attn_resolutions`` give attention,
    and images of any size are accepted. The middle always has attention. ``out_ch`` is for the
    decoder, which shares these arguments. ``double_z`` returns ``2 * z_channels``, mean and
    log-variance, for tokenizers without a codebook.

    An image's latent does not depend on the other images of its batch. Sizes that are not
    multiples of ``s`` are rounded down, as published: 33 rows give as many latent rows as 32, the
    last of which sees row 33, and a decoder returns 32.
    Source: arXiv:2012.09841, as CogVideo's ``vqvae_blocks.Encoder``.

    Raises:
        ValueError: no level, no block, or channels that are not multiples of 32.
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
        super().__init__(
            Pyramid(ch, ch_mult, num_res_blocks, resolution, attn_resolutions),
            in_channels=in_channels,
            latent_channels=2 * z_channels if double_z else z_channels,
            dropout=dropout,
            resamp_with_conv=resamp_with_conv,
            make_attn=AttnBlock,
        )

    def forward_with_features_output(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The result of ``forward``, and every activation on the way to it, in order.

        Names are the published ones: ``conv_in``, ``down{level}_block{block}``,
        ``down{level}_attn{block}``, ``down{level}_downsample``, ``mid_block_1``, ``mid_attn_1``,
        ``mid_block_2``, ``norm_out``, ``nonlinearity``, ``conv_out``.
        """
        features: dict[str, Tensor] = {}
        return self._encode(x, features.__setitem__), features


class BaseDecoder2D(nn.Module):
    """Latents to images, with a choice of blocks. A subclass calls ``_build`` and ``_decode``."""

    def _build(
        self,
        pyramid: Pyramid,
        *,
        z_channels: int,
        out_ch: int,
        resamp_with_conv: bool,
        give_pre_end: bool,
        make_block: Factory,
        make_attn: Factory,
        make_conv: Factory = Conv2d,
        zq_ch: int | None = None,
        add_conv: bool = False,
    ) -> None:
        plans = pyramid.up()
        self.spatial_stride = pyramid.spatial_stride
        self.give_pre_end = give_pre_end
        coarsest, finest = plans[0].inputs[0], plans[-1].channels
        self.conv_in = Conv2d(z_channels, coarsest, 3, padding=1)
        self.mid = MidBlocks(coarsest, make_block, make_attn)
        levels = []
        for plan in plans:
            level = UpLevel(plan, make_block, make_attn)
            if plan is not plans[-1]:
                level.upsample = Upsample(plan.channels, resamp_with_conv)
            levels.append(level)
        self.up = nn.ModuleList(reversed(levels))  # by published key, up.0 is the finest
        self.norm_out = block_norm(finest, zq_ch, add_conv)
        self.conv_out = make_conv(finest, out_ch, kernel_size=3, stride=1, padding=1)

    def _decode(self, z: Tensor, keep: Keep = drop, *, zq: Tensor | None = None) -> Tensor:
        check_input(z, self.conv_in, "z")
        context = () if zq is None else (zq,)
        h: Tensor = self.conv_in(z)
        keep("conv_in", h)
        h = self.mid(h, None, *context, keep=keep)
        for i, level in reversed(list(enumerate(self.up))):
            assert isinstance(level, UpLevel)
            for j, (block, attn) in enumerate(level.steps()):
                h = block(h, None, *context)
                keep(f"up_{i}_block_{j}", h)
                if attn is not None:
                    h = attn(h, *context)
                    keep(f"up_{i}_attn_{j}", h)
            if level.upsample is not None:
                h = level.upsample(h)
                keep(f"up_{i}_upsample", h)
        if self.give_pre_end:
            return h
        return _finish(normalized(self.norm_out, h, zq), self.conv_out, keep)


class Decoder(BaseDecoder2D):
    """Latents to images: each level but the last doubles rows and columns.

    Arguments and state_dict keys are the published ones, so public checkpoints load unchanged.
    ``resolution`` is nominal: it only decides which levels ``attn_resolutions`` give attention,
    and latents of any size are accepted. ``in_channels`` and ``double_z`` are for the encoder,
    which shares these arguments. ``give_pre_end`` returns the ``ch * ch_mult[0]`` features before
    the last norm.

    An image does not depend on the other latents of its batch.
    Source: arXiv:2012.09841, as CogVideo's ``vqvae_blocks.Decoder``.

    Raises:
        ValueError: no level, no block, or channels that are not multiples of 32.
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
        super().__init__()
        self._build(
            Pyramid(ch, ch_mult, num_res_blocks, resolution, attn_resolutions),
            z_channels=z_channels,
            out_ch=out_ch,
            resamp_with_conv=resamp_with_conv,
            give_pre_end=give_pre_end,
            make_block=partial(ResnetBlock, dropout=dropout, temb_channels=0),
            make_attn=AttnBlock,
        )

    def forward(self, z: Tensor) -> Tensor:
        """(B, z_channels, h, w) -> (B, out_ch, s * h, s * w), about [-1, 1], not clamped.

        Raises:
            ValueError: latents of another shape or dtype.
        """
        return self._decode(z)

    def forward_with_features_output(self, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The result of ``forward``, and every activation on the way to it, in order.

        Names are those of the MoVQ decoder: ``conv_in``, ``mid_block_1``, ``mid_attn_1``,
        ``mid_block_2``, ``up_{level}_block_{block}``, ``up_{level}_attn_{block}``,
        ``up_{level}_upsample``, and without ``give_pre_end`` also ``norm_out``,
        ``nonlinearity``, ``conv_out``.
        """
        features: dict[str, Tensor] = {}
        return self._decode(z, features.__setitem__), features


def _finish(h: Tensor, conv_out: nn.Module, keep: Keep) -> Tensor:
    keep("norm_out", h)
    h = silu(h)
    keep("nonlinearity", h)
    h = conv_out(h)
    keep("conv_out", h)
    return h


def check_input(x: Tensor, conv: Conv2d, name: str) -> None:
    """Raise ValueError for an input that ``conv`` would reject less clearly, or misread."""
    dtype = conv.weight.dtype
    fits = x.ndim == 4 and x.shape[1] == conv.in_channels and x.numel()
    if not fits or (x.dtype != dtype and not torch.is_autocast_enabled(x.device.type)):
        raise ValueError(
            f"{name} is {x.dtype} of {tuple(x.shape)}, but this module takes {dtype} of "
            f"(B, {conv.in_channels}, H, W), none of them 0: convert or reshape it"
        )
