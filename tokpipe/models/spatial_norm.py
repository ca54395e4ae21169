"""The norms of blocks: plain, or scaled and shifted by a quantized latent. Shapes: B images or
clips, C channels, T frames, H rows, W columns."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokpipe.models.causal_conv import CausalConv3d, PadMode
from tokpipe.models.group_norm import GroupNorm, Norm, group_norm
from tokpipe.models.operations import same_conv2d
from tokpipe.models.streaming import Stream


class SpatialNorm(nn.Module):
    """A norm whose scale and shift at each position come from the quantized latent ``zq``.

    ``norm_layer(f) * conv_y(zq) + conv_b(zq)``, with ``zq`` resized to ``f`` by repetition.
    ``add_conv`` adds a 3x3 convolution of the resized ``zq``. ``norm_layer`` is called with
    ``num_channels`` and ``norm_layer_params``; ``freeze_norm_layer`` keeps its parameters out of
    training. Source: MoVQ, arXiv:2209.09002; arguments and keys as in CogVideo.
    """

    def __init__(
        self,
        f_channels: int,
        zq_channels: int,
        norm_layer: Callable[..., nn.Module] = GroupNorm,
        freeze_norm_layer: bool = False,
        add_conv: bool = False,
        *,
        make_conv: Callable[..., Any] = same_conv2d,
        **norm_layer_params: Any,
    ) -> None:
        super().__init__()
        self.norm_layer = norm_layer(num_channels=f_channels, **norm_layer_params)
        self.norm_layer.requires_grad_(not freeze_norm_layer)
        self.conv = make_conv(zq_channels, zq_channels, 3) if add_conv else None
        self.conv_y = make_conv(zq_channels, f_channels, 1)
        self.conv_b = make_conv(zq_channels, f_channels, 1)

    def forward(self, f: Tensor, zq: Tensor, *stream: Stream | None) -> Tensor:
        """f (B, C_f, H, W), zq (B, C_zq, h, w) -> (B, C_f, H, W)."""
        if self.conv is not None:
            zq = self.conv(self._resized(zq, f.shape[2:], *stream), *stream)
        # Scale and shift are computed before the resize, on a fraction of the positions.
        scale = self._resized(self.conv_y(zq), f.shape[2:], *stream)
        shift = self._resized(self.conv_b(zq), f.shape[2:], *stream)
        return self.norm_layer(f) * scale + shift

    def _resized(self, x: Tensor, size: torch.Size, *stream: Stream | None) -> Tensor:
        return x if x.shape[2:] == size else F.interpolate(x, size)


class SpatialNorm3D(SpatialNorm):
    """``SpatialNorm`` of clips, f (B, C_f, T, H, W), with causal convolutions of ``pad_mode``. The
    first frame of ``zq`` is resized to the first of ``f``, the others to the others."""

    def __init__(
        self, *arguments: Any, pad_mode: PadMode = "constant", **norm_layer_params: Any
    ) -> None:
        make_conv = partial(CausalConv3d, pad_mode=pad_mode)
        super().__init__(*arguments, make_conv=make_conv, **norm_layer_params)

    def _resized(self, x: Tensor, size: torch.Size, *stream: Stream | None) -> Tensor:
        if x.shape[2:] == size:
            return x
        if x.shape[2] == 1 or any(one is not None and not one.is_first for one in stream):
            return F.interpolate(x, size)
        if size[0] == 1:
            raise ValueError(f"zq has {x.shape[2]} frames for the single frame of f: pass one")
        first = F.interpolate(x[:, :, :1], (1, *size[1:]))
        rest = F.interpolate(x[:, :, 1:], (size[0] - 1, *size[1:]))
        return torch.cat([first, rest], dim=2)


BlockNorm = GroupNorm | SpatialNorm


def block_norm(
    channels: int,
    zq_ch: int | None,
    add_conv: bool,
    norm: Norm = "clip",
    add_conv_pad_mode: PadMode | None = None,
) -> BlockNorm:
    """A plain norm over 32 groups of channels, or with ``zq_ch`` one that reads the latent: for
    clips with ``add_conv_pad_mode``, which published decoders leave at ``constant``."""
    if zq_ch is None and add_conv:
        raise ValueError("add_conv=True without zq_ch, the latent's channels. Pass zq_ch as well")
    if zq_ch is None:
        return group_norm(channels, norm)
    mode = add_conv_pad_mode
    make = SpatialNorm if mode is None else partial(SpatialNorm3D, pad_mode=mode)
    return make(channels, zq_ch, group_norm, add_conv=add_conv, norm=norm)


def normalized(norm: BlockNorm, x: Tensor, zq: Tensor | None, *stream: Stream | None) -> Tensor:
    """Apply either kind of ``block_norm``."""
    if isinstance(norm, SpatialNorm):
        if zq is None:
            raise ValueError("this block was built with zq_ch, so its norms need it: pass zq")
        return norm(x, zq, *stream)
    if zq is not None:
        raise ValueError("this block was built without zq_ch, so it cannot use zq: leave it out")
    return norm(x)
