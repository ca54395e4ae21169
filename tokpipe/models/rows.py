"""Group norm and SiLU on CPUs, of tensors whose channels are innermost, piece by piece in cache.

PyTorch's operations each read and write the whole tensor, which costs as much as it costs to
compute a convolution in bfloat16, and its group norm of such tensors adds up by the number of
threads. Here a piece stays in the cache for all that is done to it, and no bit depends on threads
or on the other clips of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

PIECE_ELEMENTS = 2**16
"""Elements of a piece: 256 KiB of float32, so that a piece and what is made of it fit a cache."""

GRAIN_ELEMENTS = 32768
"""Elements that PyTorch gives to a thread at the least."""


def norm_rows(
    x: Tensor,
    out: Tensor,
    *,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    sample_dims: int,
    with_silu: bool,
) -> None:
    """Write the group norm of ``x``, and with ``with_silu`` the SiLU of that, to ``out``.

    x and out (B, ..., C), the same shape, channels innermost. The first ``sample_dims`` dimensions
    count the samples that have statistics of their own; each sample of ``out`` is contiguous.
    Statistics are float32 or better, whatever the dtype; values are rounded to it once, at the end.
    """
    channels = x.shape[-1]
    wide = torch.promote_types(x.dtype, torch.float32)
    weight, bias = weight.to(wide), bias.to(wide)
    samples = zip(_samples(x.contiguous(), sample_dims), _samples(out, sample_dims), strict=True)
    for source, target in samples:
        rows, results = source.view(-1, channels), target.view(-1, channels)
        center, scale = _moments(rows, num_groups, weight, eps)
        for span in _spans(len(rows), channels):
            y = torch.addcmul(bias, rows[span] - center, scale)
            if with_silu:
                F.silu(y, inplace=True)
            results[span] = y


def _samples(x: Tensor, dims: int) -> Iterator[Tensor]:
    """Each sample of ``x``: views, also where samples do not follow each other in memory."""
    for part in x.unbind():
        if dims == 1:
            yield part
        else:
            yield from _samples(part, dims - 1)


def _moments(rows: Tensor, num_groups: int, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Center and scale of each channel that normalize rows (N, C) over N and each group.

    Sums are taken of differences from the first row: a mean far from zero would otherwise cancel
    most digits of the variance.
    """
    pivot = rows[0].to(weight.dtype)
    sums = torch.zeros_like(pivot, dtype=torch.float64)
    squares = torch.zeros_like(sums)
    for piece in rows.split(max(1, PIECE_ELEMENTS // rows.shape[1])):
        difference = piece - pivot
        sums += difference.sum(0)
        squares += difference.square_().sum(0)
    return center_and_scale(pivot, sums, squares, len(rows), num_groups, weight, eps)


def center_and_scale(
    pivot: Tensor,
    sums: Tensor,
    squares: Tensor,
    num_rows: int,
    num_groups: int,
    weight: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """What to subtract from each channel, and then to multiply by; of sums over ``num_rows`` rows.

    All (..., C). ``sums`` and ``squares``, float64, are of the differences from ``pivot``.
    """
    grouped = (*sums.shape[:-1], num_groups, -1)
    offsets = (sums / num_rows).view(grouped)
    spreads = squares.view(grouped) / num_rows - offsets.square()
    means = pivot.double().view(grouped) + offsets
    mean = means.mean(-1, keepdim=True)
    variance = (spreads + (means - mean).square()).mean(-1, keepdim=True).clamp_min_(0)
    scale = (variance + eps).rsqrt() * weight.double().view(num_groups, -1)
    center = mean.expand_as(scale)
    return center.flatten(-2).to(weight.dtype), scale.flatten(-2).to(weight.dtype)


def _spans(num_rows: int, channels: int) -> Iterator[slice]:
    """Cut rows into pieces that PyTorch's threads share by whole rows.

    A thread that begins or ends within a row does the rest of it by other instructions than whole
    vectors, which round otherwise.
    """
    threads = torch.get_num_threads()
    most = max(threads, threads * PIECE_ELEMENTS // channels)
    start = 0
    while start < num_rows:
        rows = min(most, num_rows - start)
        rows -= rows % min(threads, -(-rows * channels // GRAIN_ELEMENTS))
        yield slice(start, start + rows)
        start += rows
