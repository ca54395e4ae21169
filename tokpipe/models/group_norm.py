"""Group norms of clips: over all frames, or over each frame separately. Shapes: B clips, C
channels, T frames, H rows, W columns."""

import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import ModuleType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokpipe.models.operations import as_weights
from tokpipe.models.process import is_autocast
from tokpipe.models.rows import norm_rows

_log = logging.getLogger(__name__)

Norm = Literal["clip", "frame"]
"""What the statistics of a norm span: ``clip`` all of (T, H, W), as published, so frames see later
ones; ``frame`` the (H, W) of one. Keys are the same, but weights trained with one need it."""


class GroupNorm(nn.GroupNorm):
    """``nn.GroupNorm`` that accepts groups of one value, which become the bias. Statistics are
    float32, and parameters may have a wider type than the input. Without gradients, channels-last
    tensors stay channels-last."""

    sample_dims = 1
    """Leading dimensions of (B, T, H, W, C) that count samples with separate statistics."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> the same shape."""
        if self.weight is None or not is_fused(x):  # None: affine=False
            return self._by_torch(x)
        last = x.movedim(1, -1)
        y = torch.empty(last.shape, dtype=x.dtype, device=x.device).movedim(-1, 1)
        self.write(x, y)
        return y

    def write(
        self, x: Tensor, out: Tensor, *, with_silu: bool = False, bias: Tensor | None = None
    ) -> None:
        """Write ``forward(x)``, or its SiLU, to ``out`` in one pass, where ``is_fused(x)``. Both
        are (B, C, ...), with channels innermost in ``out``. Where there are ``gpu_kernels``,
        ``bias`` (C) is added to ``x`` first."""
        last, kernels = (x.movedim(1, -1), out.movedim(1, -1), self), gpu_kernels(x)
        how: dict[str, Any] = {"sample_dims": self.sample_dims, "with_silu": with_silu}
        if kernels is None:
            norm_rows(*last, **how)
        else:
            sums = getattr(x, "sums", {}).get(self.sample_dims)
            kernels.norm_triton(*last, **how, bias=bias, sums=sums)

    def residual(self, x: Tensor, h: Tensor, bias: Tensor) -> Tensor:
        """x, h (B, C, ...), bias (C) -> ``x + (h + bias)``, with the sums for a norm like this."""
        kernels, last = gpu_kernels(x), (x.movedim(1, -1), h.movedim(1, -1))
        assert kernels is not None
        rows, sums = kernels.add_triton(*last, bias, sample_dims=self.sample_dims)
        y: Tensor = rows.movedim(-1, 1)
        y.sums = {self.sample_dims: sums}  # type: ignore[attr-defined]
        return y

    def _by_torch(self, x: Tensor) -> Tensor:
        given = x if self.weight is None else as_weights(self, x)
        # Contiguous: the kernel for other layouts sums in an order that depends on the threads.
        y = torch.group_norm(given.contiguous(), self.num_groups, self.weight, self.bias, self.eps)
        return y if given is x else y.to(x.dtype)


class FrameGroupNorm(GroupNorm):
    """Group norm of each frame: its bits do not depend on other frames and clips."""

    sample_dims = 2

    def _by_torch(self, x: Tensor) -> Tensor:
        frames = x.transpose(1, 2)
        y = super()._by_torch(frames.flatten(0, 1))
        return y.view(frames.shape).transpose(1, 2)


_is_plain = False


@contextmanager
def plain_norms() -> Iterator[None]:
    """Within the block, norms are PyTorch's own, to compare others with."""
    global _is_plain
    _is_plain = True
    try:
        yield
    finally:
        _is_plain = False


def is_fused(x: Tensor) -> bool:
    """Whether norms of ``x`` are fused with SiLU: without gradients, on GPUs only by Triton."""
    if _is_plain or torch.is_grad_enabled() or is_autocast(x.device):
        return False
    return x.device.type == "cpu" or gpu_kernels(x) is not None


def gpu_kernels(x: Tensor) -> "ModuleType | type[MetaKernels] | None":
    """``tokpipe.models.triton_kernels`` if they work on the device of ``x`` and in its dtype."""
    if x.device.type not in ("cuda", "meta") or x.dtype == torch.float64:
        return None
    return MetaKernels if x.is_meta else working_kernels(x.device)[0]


class MetaKernels:
    """Those of ``triton_kernels`` for tensors without data: they take as much memory."""

    @staticmethod
    def norm_triton(x: Tensor, *_: Any, **__: Any) -> None:
        x.contiguous()

    @staticmethod
    def add_triton(x: Tensor, h: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        return torch.empty_like(x, dtype=torch.promote_types(x.dtype, h.dtype)), None


@lru_cache
def working_kernels(device: torch.device) -> tuple[ModuleType | None, str]:
    """The kernels and ``triton``, or None and ``torch: `` with the reason."""
    try:
        from tokpipe.models import triton_kernels

        x = torch.linspace(-3, 5, 2 * 5 * 7 * 64, device=device).view(2, 5, 7, 64)
        norm, y = nn.GroupNorm(32, 64, 1e-6, device=device), torch.empty_like(x)
        norm.load_state_dict({"weight": x[0, 0, 0], "bias": x[0, 0, 1]})
        twice, sums = triton_kernels.add_triton(x, x, norm.bias, sample_dims=1)
        triton_kernels.norm_triton(twice, y, norm, sample_dims=1, with_silu=True, sums=sums)
        wanted = F.silu(norm((x + (x + norm.bias)).movedim(-1, 1).contiguous()))
        torch.testing.assert_close(y.movedim(-1, 1), wanted, rtol=1e-4, atol=1e-4)
    except Exception as error:  # compiler, driver or GPU: anything may fail
        _log.warning(
            "group norm on %s uses PyTorch's slower kernels: Triton's did not work there (%s: %s)",
            *(device, type(error).__name__, error),
        )
        why = f"Triton's kernels did not work ({type(error).__name__}: see the worker's log)"
        has_compiler = any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang")))
        if not has_compiler or isinstance(error, subprocess.CalledProcessError):
            why = "Triton found no C compiler or headers: install gcc, libc6-dev and python3-dev"
        return None, f"torch: {why}"
    return triton_kernels, "triton"


def group_norm(num_channels: int, norm: Norm = "clip") -> GroupNorm:
    """The norm of this family: 32 groups of channels, epsilon 1e-6."""
    if norm not in ("clip", "frame"):
        raise ValueError(f"norm={norm!r}: use 'clip' (as published) or 'frame' (streamable)")
    kind = GroupNorm if norm == "clip" else FrameGroupNorm
    return kind(num_groups=32, num_channels=num_channels, eps=1e-6)
