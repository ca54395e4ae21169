"""The norm of a 3D decoder's blocks, which reads the quantized latent.

Shape letters: B clips, C channels, T frames, H rows, W columns.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokpipe.models.causal_conv import CausalConv3d, PadMode
from tokpipe.models.group_norm import GroupNorm
from tokpipe.models.streaming import Stream


class SpatialNorm3D(nn.Module):
    """A norm whose scale and shift at each position come from the quantized latent ``zq``.

    ``norm_layer(f) * conv_y(zq) + conv_b(zq)``, with ``zq`` resized to ``f`` by repetition: its
    first frame to the first frame, the others to the others. ``add_conv`` adds a causal 3x3x3
    convolution of the resized ``zq``. ``norm_layer`` is called with ``num_channels`` and
    ``norm_layer_params``; ``freeze_norm_layer`` keeps its parameters out of training.
    Source: MoVQ, arXiv:2209.09002; arguments and keys as in CogVideo.
    """

    def __init__(
        self,
        f_channels: int,
        zq_channels: int,
        norm_layer: Callable[..., nn.Module] = GroupNorm,
        freeze_norm_layer: bool = False,
        add_conv: bool = False,
        pad_mode: PadMode = "constant",
        **norm_layer_params: Any,
    ) -> None:
        super().__init__()
        self.norm_layer = norm_layer(num_channels=f_channels, **norm_layer_params)
        self.norm_layer.requires_grad_(not freeze_norm_layer)
        self.conv = CausalConv3d(zq_channels, zq_channels, 3, pad_mode) if add_conv else None
        self.conv_y = CausalConv3d(zq_channels, f_channels, 1, pad_mode)
        self.conv_b = CausalConv3d(zq_channels, f_channels, 1, pad_mode)

    def forward(self, f: Tensor, zq: Tensor, stream: Stream | None = None) -> Tensor:
        """f (B, C_f, T, H, W), zq (B, C_zq, t, h, w) -> (B, C_f, T, H, W).

        Raises:
            ValueError: ``zq`` has several frames and ``f`` one.
        """
        size = f.shape[2:]
        is_first = stream is None or stream.is_first
        if is_first and zq.shape[2] > 1 and size[0] == 1:
            raise ValueError(
                f"zq has {zq.shape[2]} frames for the single frame of f, so all but the first have "
                "nothing to scale. Pass one frame of zq, or more of f"
            )
        if self.conv is not None:
            zq = self.conv(_resized(zq, size, is_first), stream)
        # Otherwise no position of zq depends on another: scale and shift are computed before the
        # resize, on a fraction of the positions.
        scale = _resized(self.conv_y(zq), size, is_first)
        shift = _resized(self.conv_b(zq), size, is_first)
        y: Tensor = self.norm_layer(f) * scale + shift
        return y


def _resized(x: Tensor, size: torch.Size, is_first: bool) -> Tensor:
    """Repeat the values of (B, C, t, h, w) to ``size`` = (T, H, W), frame 0 separately."""
    if x.shape[2:] == size:
        return x
    if not is_first or x.shape[2] == 1:
        return F.interpolate(x, size)
    first = F.interpolate(x[:, :, :1], (1, *size[1:]))
    rest = F.interpolate(x[:, :, 1:], (size[0] - 1, *size[1:]))
    return torch.cat([first, rest], dim=2)
