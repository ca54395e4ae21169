"""Group norm, SiLU and residual sums on GPUs, in as few passes over memory as they can be.

A norm needs one pass for its sums and one for its values, and the sums of the next norm are taken
where its input is written. Rows are summed in blocks whose size depends only on the number of
channels, and blocks in float64, so no bit depends on the batch.

Programs are numbered on the first axis of the grid: the others end at 65,535. Offsets have 64 bits.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from tokpipe.models.rows import center_and_scale

TILE_ELEMENTS = 4096  # Elements that a program holds at a time
TILES = 16  # Tiles that one program sums

Sums = tuple[Tensor, Tensor]
"""The first row of each sample, (samples, C) float32, and the sums (2, samples, C) float64 of the
differences of its rows from that, and of their squares."""


@triton.jit  # type: ignore[untyped-decorator]
def _sum_kernel(
    x: Any,
    pivots: Any,
    sums: Any,
    squares: Any,
    addend: Any,
    bias: Any,
    out: Any,
    num_rows: Any,
    num_blocks: Any,
    channels: Any,
    tile_rows: tl.constexpr,
    tile_channels: tl.constexpr,
    tiles: tl.constexpr,
    adds: tl.constexpr,
) -> None:
    """Sum one block of rows of one sample, by channel, as differences from its first row. With
    ``adds`` the rows are those of ``x + (addend + bias)``, and written to ``out``."""
    program = tl.program_id(0)
    sample, block = (program // num_blocks).to(tl.int64), program % num_blocks
    columns = tl.arange(0, tile_channels)
    in_channels = columns < channels
    start = sample * num_rows * channels
    pivot = tl.load(pivots + sample * channels + columns, mask=in_channels, other=0.0)
    if adds:
        added = tl.load(bias + columns, mask=in_channels, other=0.0)
    total = tl.zeros((tile_channels,), tl.float32)
    total_squares = tl.zeros((tile_channels,), tl.float32)
    for tile in range(tiles):
        rows = (block * tiles + tile) * tile_rows + tl.arange(0, tile_rows)
        inside = (rows < num_rows)[:, None] & in_channels[None, :]
        offsets = start + rows.to(tl.int64)[:, None] * channels + columns[None, :]
        values = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
        if adds:
            more = tl.load(addend + offsets, mask=inside, other=0.0).to(tl.float32)
            stored = (values + (more + added[None, :])).to(out.dtype.element_ty)
            tl.store(out + offsets, stored, mask=inside)
            values = stored.to(tl.float32)
        difference = tl.where(inside, values - pivot[None, :], 0.0)
        total += tl.sum(difference, axis=0)
        total_squares += tl.sum(difference * difference, axis=0)
    at = program.to(tl.int64) * channels + columns
    tl.store(sums + at, total, mask=in_channels)
    tl.store(squares + at, total_squares, mask=in_channels)


@triton.jit  # type: ignore[untyped-decorator]
def _apply_kernel(
    x: Any,
    out: Any,
    center: Any,
    scale: Any,
    bias: Any,
    num_rows: Any,
    num_tiles: Any,
    channels: Any,
    inner_samples: Any,
    outer_stride: Any,
    inner_stride: Any,
    tile_rows: tl.constexpr,
    tile_channels: tl.constexpr,
    with_silu: tl.constexpr,
) -> None:
    """Normalize one tile of one sample, and write it to the sample's place in ``out``."""
    program = tl.program_id(0)
    sample, tile = (program // num_tiles).to(tl.int64), program % num_tiles
    columns = tl.arange(0, tile_channels)
    in_channels = columns < channels
    rows = tile * tile_rows + tl.arange(0, tile_rows)
    inside = (rows < num_rows)[:, None] & in_channels[None, :]
    offsets = rows.to(tl.int64)[:, None] * channels + columns[None, :]
    values = tl.load(x + sample * num_rows * channels + offsets, mask=inside, other=0.0)
    centers = tl.load(center + sample * channels + columns, mask=in_channels, other=0.0)
    factors = tl.load(scale + sample * channels + columns, mask=in_channels, other=0.0)
    added = tl.load(bias + columns, mask=in_channels, other=0.0)
    y = (values.to(tl.float32) - centers[None, :]) * factors[None, :] + added[None, :]
    if with_silu:
        y = y / (1.0 + tl.exp(-y))
    target = out + sample // inner_samples * outer_stride + sample % inner_samples * inner_stride
    tl.store(target + offsets, y.to(out.dtype.element_ty), mask=inside)


def norm_triton(
    x: Tensor,
    out: Tensor,
    norm: nn.GroupNorm,
    *,
    sample_dims: int,
    with_silu: bool,
    bias: Tensor | None = None,
    sums: Sums | None = None,
) -> None:
    """``norm_rows`` of ``x + bias`` on a GPU: float32 and narrower. ``bias`` (C) only moves the
    center; ``sums`` are those that came with ``x`` from ``add_triton``."""
    x = x.contiguous()
    pivots, totals = sums or _summed(x, _first_rows(x, sample_dims))
    samples, channels = pivots.shape
    num_rows = x.numel() // pivots.numel()
    center, scale = center_and_scale(pivots, totals, num_rows, norm, bias)
    tile = _tile(channels)
    num_tiles = triton.cdiv(num_rows, tile["tile_rows"])
    inner = 1 if sample_dims == 1 else x.shape[1]
    strides = (out.stride(0), 0 if sample_dims == 1 else out.stride(1))
    _apply_kernel[(samples * num_tiles,)](
        *(x, out, center, scale, norm.bias.float(), num_rows, num_tiles, channels, inner, *strides),
        **tile,
        with_silu=with_silu,
    )


def add_triton(x: Tensor, h: Tensor, bias: Tensor, *, sample_dims: int) -> tuple[Tensor, Sums]:
    """Contiguous x, h (B, ..., C), bias (C) -> ``x + (h + bias)`` in the wider dtype, its sums."""
    out = torch.empty_like(x, dtype=torch.promote_types(x.dtype, h.dtype))
    first, addend = _first_rows(x, sample_dims), _first_rows(h, sample_dims)
    pivots = (first + (addend + bias)).to(out.dtype).float()
    return out, _summed(x, pivots, (h, bias.float(), out))


def _summed(
    x: Tensor, pivots: Tensor, addition: tuple[Tensor, Tensor, Tensor] | None = None
) -> Sums:
    samples, channels = pivots.shape
    num_rows, tile = x.numel() // pivots.numel(), _tile(channels)
    num_blocks = triton.cdiv(num_rows, tile["tile_rows"] * TILES)
    sums = pivots.new_empty((2, samples, num_blocks, channels))
    _sum_kernel[(samples * num_blocks,)](
        *(x, pivots, *sums, *(addition or (x, pivots, x)), num_rows, num_blocks, channels),
        **tile,
        tiles=TILES,
        adds=addition is not None,
    )
    return pivots, sums.double().sum(2)


def _first_rows(x: Tensor, sample_dims: int) -> Tensor:
    """(samples, C) float32 of (B, ..., C)."""
    return x.flatten(0, sample_dims - 1).flatten(1, -2)[:, 0].float().contiguous()


def _tile(channels: int) -> dict[str, int]:
    width = triton.next_power_of_2(channels)
    return {"tile_rows": max(1, TILE_ELEMENTS // width), "tile_channels": width}
