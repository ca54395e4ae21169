"""Group norm on CPUs for tensors whose channels are innermost, piece by piece in cache.

Each of PyTorch's operations reads and writes the whole tensor, which takes as long as a convolution
in bfloat16, and its group norm of such tensors sums in an order that depends on the threads. Here
no bit depends on threads or on the other clips of the batch.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

PIECE_ELEMENTS = 2**18
"""Elements of a piece for each thread, one MiB of float32: input and result fit a cache, and
outweigh the synchronization of threads."""

BLOCK_ELEMENTS = 2**14  # Elements that one thread sums in float32

GRAIN_ELEMENTS = 32768  # The fewest elements that PyTorch assigns to a thread


def norm_rows(
    x: Tensor, out: Tensor, norm: nn.GroupNorm, *, sample_dims: int, with_silu: bool
) -> None:
    """Write ``norm`` of ``x``, or its SiLU, to ``out``: both (B, ..., C), of any dtypes.

    The first ``sample_dims`` dimensions count the samples with separate statistics; each is
    contiguous in ``out``. Arithmetic is float32 or better; values are rounded once, at the end.
    """
    channels = x.shape[-1]
    wide = torch.promote_types(x.dtype, torch.float32)
    samples = list(np.ndindex(*x.shape[:sample_dims]))  # which may not be adjacent in memory
    sources, targets = (
        [tensor[sample].view(-1, channels) for sample in samples]
        for tensor in (x.contiguous(), out)
    )
    num_rows, bias = len(sources[0]), norm.bias.to(wide)
    pivots = torch.stack([rows[0] for rows in sources]).to(wide)
    sums = [_sums(rows, pivot) for rows, pivot in zip(sources, pivots, strict=True)]
    center, scale = center_and_scale(pivots, torch.stack(sums, dim=1), num_rows, norm)
    shift = torch.addcmul(bias, center, scale, value=-1)
    spans = list(_spans(num_rows, channels))
    buffer = torch.empty((spans[0].stop, channels), dtype=wide)
    for number, (rows, results) in enumerate(zip(sources, targets, strict=True)):
        for span in spans:
            result = results[span]
            is_wide = result.dtype == wide
            y = result if is_wide else buffer[: len(result)]
            given = rows[span] if rows.dtype == wide else y.copy_(rows[span])
            if is_wide:
                # Not with the shift, which loses the digits of a mean far from zero.
                torch.sub(given, center[number], out=y)
                torch.addcmul(bias, y, scale[number], out=y)
            else:
                torch.addcmul(shift[number], given, scale[number], out=y)
            if with_silu:
                F.silu(y, inplace=True)
            if not is_wide:
                result.copy_(y)


def _sums(rows: Tensor, pivot: Tensor) -> Tensor:
    """(2, C) float64: sums of the differences of rows (N, C) from ``pivot``, and of their squares.
    A mean far from zero would otherwise cancel most digits of the variance."""
    channels = rows.shape[1]
    block = max(1, BLOCK_ELEMENTS // channels)
    pieces = rows.split(block * (PIECE_ELEMENTS // BLOCK_ELEMENTS))
    buffer = torch.empty(pieces[0].shape, dtype=pivot.dtype)
    sums, squares = list[Tensor](), list[Tensor]()
    for piece in pieces:
        difference = buffer[: len(piece)]
        if piece.dtype == pivot.dtype:
            torch.sub(piece, pivot, out=difference)
        else:  # sub would first convert the piece, in extra memory
            difference.copy_(piece).sub_(pivot)
        sums += _block_sums(difference, block)
        squares += _block_sums(difference.square_(), block)
    return torch.cat(sums + squares).double().view(2, -1, channels).sum(1)


def _block_sums(rows: Tensor, block: int) -> list[Tensor]:
    """Sums over each ``block`` of rows (N, C), as (n, C), and over the remaining rows. PyTorch
    divides blocks among its threads, so each sums what it has just computed."""
    whole = len(rows) - len(rows) % block
    blocks, rest = rows[:whole].view(-1, block, rows.shape[1]), rows[whole:]
    return [blocks.sum(1), *([rest.sum(0, keepdim=True)] if len(rest) else [])]


def center_and_scale(
    pivot: Tensor, sums: Tensor, num_rows: int, norm: nn.GroupNorm, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The (..., C) to subtract from channels, and to multiply them by. ``sums`` (2, ..., C) float64
    are over ``num_rows`` differences of rows from ``pivot`` (..., C), and over their squares.
    ``bias`` (C) is missing from the rows, but counts in their norm."""
    grouped = (*pivot.shape[:-1], norm.num_groups, -1)
    offsets, squares = (sums / num_rows).view(2, *grouped)
    means = pivot.double().view(grouped) + offsets
    if bias is not None:
        means += bias.double().view(norm.num_groups, -1)
    center = means.mean(-1, keepdim=True)
    spreads = squares.addcmul_(offsets, offsets, value=-1).add_(means.sub_(center).square_())
    variance = spreads.mean(-1, keepdim=True).clamp_min_(0)
    scale = (variance + norm.eps).rsqrt_() * norm.weight.double().view(norm.num_groups, -1)
    if bias is not None:
        center = center - bias.double().view(norm.num_groups, -1)
    return tuple(one.expand_as(scale).flatten(-2).to(pivot.dtype) for one in (center, scale))


def _spans(num_rows: int, channels: int) -> Iterator[slice]:
    """Cut rows into pieces that PyTorch's threads share by whole rows: part of a row is processed
    by scalar instructions, which round differently from vector ones."""
    threads = torch.get_num_threads()
    most = max(threads, threads * PIECE_ELEMENTS // channels)
    start = 0
    while start < num_rows:
        rows = min(most, num_rows - start)
        rows -= rows % min(threads, -(-rows * channels // GRAIN_ELEMENTS))
        yield slice(start, start + rows)
        start += rows
