"""Group norms of clips: over all of time, or over each frame alone.

Shape letters: B clips, C channels, T frames, H rows, W columns.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from tokpipe.models.rows import norm_rows

Norm = Literal["clip", "frame"]
"""What the statistics of a norm span. ``clip``: all of (T, H, W), as published, so every frame
sees the later ones. ``frame``: the (H, W) of one frame, so none sees another. The parameters and
their keys are the same, but weights trained under one are not good under the other."""


class GroupNorm(nn.GroupNorm):
    """``nn.GroupNorm`` that takes groups of one value, which become the bias, in any batch.

    PyTorch refuses them in a batch of one and takes them in a batch of two. The statistics are
    float32 whatever the dtype. Without gradients, CPUs keep channels-last tensors as they are.
    """

    sample_dims = 1
    """Leading dimensions of (B, T, H, W, C) that count samples with statistics of their own."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> the same shape."""
        if by_rows(x):
            last = x.movedim(1, -1)
            y = torch.empty(last.shape, dtype=x.dtype)
            self._write(last, y, with_silu=False)
            return y.movedim(-1, 1)
        return self._by_torch(x)

    def write_silu(self, x: Tensor, out: Tensor) -> None:
        """Write the SiLU of what ``forward`` gives to ``out``, in one go; see ``by_rows``.

        x and out (B, C, T, H, W). The channels of ``out`` are innermost in memory.
        """
        self._write(x.movedim(1, -1), out.movedim(1, -1), with_silu=True)

    def _write(self, x: Tensor, out: Tensor, *, with_silu: bool) -> None:
        norm_rows(
            x,
            out,
            num_groups=self.num_groups,
            weight=self.weight,
            bias=self.bias,
            eps=self.eps,
            sample_dims=self.sample_dims,
            with_silu=with_silu,
        )

    def _by_torch(self, x: Tensor) -> Tensor:
        # Contiguous, because its kernel for other layouts adds up by the number of threads.
        return torch.group_norm(x.contiguous(), self.num_groups, self.weight, self.bias, self.eps)


class FrameGroupNorm(GroupNorm):
    """Group norm of each frame alone, with the parameters and keys of ``nn.GroupNorm``.

    A frame comes out with the same bits whatever frames and clips stand beside it.
    """

    sample_dims = 2

    def _by_torch(self, x: Tensor) -> Tensor:
        # PyTorch's fused kernel wants frames as a batch. The copy there is a fraction of the time
        # that statistics by plain tensor arithmetic take, forward and backward.
        frames = x.transpose(1, 2)
        y = super()._by_torch(frames.flatten(0, 1))
        return y.view(frames.shape).transpose(1, 2)


def by_rows(x: Tensor) -> bool:
    """Whether norms of ``x`` are computed row by row: on CPUs, where no gradient is wanted."""
    return (
        x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


def norm_class(norm: Norm) -> type[GroupNorm]:
    """The class of a kind of norm.

    Raises:
        ValueError: an unknown kind.
    """
    if norm not in ("clip", "frame"):
        raise ValueError(f"norm={norm!r}: use 'clip' (as published) or 'frame' (streamable)")
    return GroupNorm if norm == "clip" else FrameGroupNorm


def group_norm(channels: int, norm: Norm = "clip") -> GroupNorm:
    """The norm of this family: 32 groups of channels, epsilon 1e-6.

    Raises:
        ValueError: an unknown kind of norm, or channels that 32 groups cannot share.
    """
    return norm_class(norm)(num_groups=32, num_channels=channels, eps=1e-6)
