"""Group norms of clips: over all frames, or over each frame separately.

Shape letters: B clips, C channels, T frames, H rows, W columns.
"""

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokpipe.models.operations import as_weights
from tokpipe.models.rows import norm_rows

_log = logging.getLogger(__name__)

Norm = Literal["clip", "frame"]
"""What the statistics of a norm span. ``clip``: all of (T, H, W), as published, so every frame
sees the later ones. ``frame``: the (H, W) of one frame, so no frame sees another. Parameters and
keys are the same, but weights trained with one do not work with the other."""


class GroupNorm(nn.GroupNorm):
    """``nn.GroupNorm`` that accepts groups of one value, which become the bias, in any batch.

    PyTorch rejects them in a batch of one and accepts them in a batch of two. The statistics are
    float32 whatever the dtype, and the parameters may have a wider one than the input. Without
    gradients, channels-last tensors stay channels-last.
    """

    sample_dims = 1
    """Leading dimensions of (B, T, H, W, C) that count samples with separate statistics."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> the same shape."""
        if not is_fused(x):
            return self._by_torch(x)
        last = x.movedim(1, -1)
        y = torch.empty(last.shape, dtype=x.dtype, device=x.device).movedim(-1, 1)
        self.write(x, y)
        return y

    def write(self, x: Tensor, out: Tensor, *, with_silu: bool = False) -> None:
        """Write ``forward(x)``, or its SiLU, to ``out`` in one pass, where ``is_fused(x)``.

        x and out (B, C, ...). The channels of ``out`` are innermost in memory.
        """
        fused = norm_rows if x.device.type == "cpu" else fused_on_gpu(x.device)
        assert fused is not None, "only called where is_fused"
        last = x.movedim(1, -1), out.movedim(1, -1)
        fused(*last, self, sample_dims=self.sample_dims, with_silu=with_silu)

    def _by_torch(self, x: Tensor) -> Tensor:
        given = as_weights(self, x)
        # Contiguous: the kernel for other layouts sums in an order that depends on the threads.
        y = torch.group_norm(given.contiguous(), self.num_groups, self.weight, self.bias, self.eps)
        return y if given is x else y.to(x.dtype)


class FrameGroupNorm(GroupNorm):
    """Group norm of each frame separately, with the parameters and keys of ``nn.GroupNorm``.

    A frame's result has the same bits whatever other frames and clips there are.
    """

    sample_dims = 2

    def _by_torch(self, x: Tensor) -> Tensor:
        # PyTorch's fused kernel needs frames as a batch. The copy takes a fraction of the time of
        # statistics by plain tensor arithmetic, forward and backward.
        frames = x.transpose(1, 2)
        y = super()._by_torch(frames.flatten(0, 1))
        return y.view(frames.shape).transpose(1, 2)


def is_fused(x: Tensor) -> bool:
    """Whether norms of ``x`` are computed together with their SiLU, in few passes over memory.

    Not where gradients are enabled, nor on GPUs where Triton does not work.
    """
    device = x.device.type
    if torch.is_grad_enabled() or torch.is_autocast_enabled(device):
        return False
    if device == "cuda":
        return x.dtype != torch.float64 and fused_on_gpu(x.device) is not None
    return device == "cpu"


@lru_cache
def fused_on_gpu(device: torch.device) -> Callable[..., None] | None:
    """The kernel for a GPU, if it agrees with PyTorch's result there; else None."""
    try:
        from tokpipe.models.triton_norm import norm_triton

        x = torch.linspace(-3, 5, 2 * 5 * 7 * 64, device=device).view(2, 5, 7, 64)
        norm, y = nn.GroupNorm(32, 64, 1e-6, device=device), torch.empty_like(x)
        norm.load_state_dict({"weight": x[0, 0, 0], "bias": x[0, 0, 1]})
        norm_triton(x, y, norm, sample_dims=1, with_silu=True)
        wanted = F.silu(norm(x.movedim(-1, 1).contiguous()))
        torch.testing.assert_close(y.movedim(-1, 1), wanted, rtol=1e-4, atol=1e-4)
    except Exception as error:  # compiler, driver or GPU: anything may fail
        _log.warning(
            "group norm on %s uses PyTorch's kernels, which are slower: Triton's did not work "
            "there (%s: %s)",
            *(device, type(error).__name__, error),
        )
        return None
    return norm_triton


def group_norm(num_channels: int, norm: Norm = "clip") -> GroupNorm:
    """The norm of this family: 32 groups of channels, epsilon 1e-6."""
    if norm not in ("clip", "frame"):
        raise ValueError(f"norm={norm!r}: use 'clip' (as published) or 'frame' (streamable)")
    kind = GroupNorm if norm == "clip" else FrameGroupNorm
    return kind(num_groups=32, num_channels=num_channels, eps=1e-6)
