"""Group norm and SiLU on GPUs in two passes over memory: one for the sums, one for the values.

Triton comes with PyTorch's CUDA builds. Rows are summed in blocks whose size depends only on the
number of channels, and blocks in float64, so no bit depends on the batch.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from tokpipe.models.rows import center_and_scale

TILE_ELEMENTS = 4096  # Elements that a program holds at a time
TILES = 16  # Tiles that one program sums


@triton.jit  # type: ignore[untyped-decorator]
def _sum_kernel(
    x: Any,
    sums: Any,
    squares: Any,
    num_rows: Any,
    channels: Any,
    tile_rows: tl.constexpr,
    tile_channels: tl.constexpr,
    tiles: tl.constexpr,
) -> None:
    """Sum one block of rows of one sample, by channel, as differences from its first row."""
    sample = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    columns = tl.arange(0, tile_channels)
    in_channels = columns < channels
    start = x + sample * num_rows * channels
    pivot = tl.load(start + columns, mask=in_channels, other=0.0).to(tl.float32)
    total = tl.zeros((tile_channels,), tl.float32)
    total_squares = tl.zeros((tile_channels,), tl.float32)
    for tile in range(tiles):
        rows = (block * tiles + tile) * tile_rows + tl.arange(0, tile_rows)
        inside = (rows < num_rows)[:, None] & in_channels[None, :]
        offsets = rows.to(tl.int64)[:, None] * channels + columns[None, :]
        values = tl.load(start + offsets, mask=inside, other=0.0).to(tl.float32)
        difference = tl.where(inside, values - pivot[None, :], 0.0)
        total += tl.sum(difference, axis=0)
        total_squares += tl.sum(difference * difference, axis=0)
    at = (sample * tl.num_programs(1) + block) * channels + columns
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
    channels: Any,
    inner_samples: Any,
    outer_stride: Any,
    inner_stride: Any,
    tile_rows: tl.constexpr,
    tile_channels: tl.constexpr,
    with_silu: tl.constexpr,
) -> None:
    """Normalize one tile of one sample, and write it to the sample's place in ``out``."""
    sample = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, tile_channels)
    in_channels = columns < channels
    rows = tl.program_id(1) * tile_rows + tl.arange(0, tile_rows)
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
    x: Tensor, out: Tensor, norm: nn.GroupNorm, *, sample_dims: int, with_silu: bool
) -> None:
    """``tokpipe.models.rows.norm_rows`` on a GPU: float32 and narrower."""
    x = x.contiguous()
    channels, samples = x.shape[-1], x.shape[:sample_dims].numel()
    num_rows = x.numel() // (samples * channels)
    tile_channels = triton.next_power_of_2(channels)
    tile_rows = max(1, TILE_ELEMENTS // tile_channels)
    blocks = triton.cdiv(num_rows, tile_rows * TILES)
    sums = torch.empty((2, samples, blocks, channels), dtype=torch.float32, device=x.device)
    sizes = {"tile_rows": tile_rows, "tile_channels": tile_channels}
    _sum_kernel[(samples, blocks)](x, *sums, num_rows, channels, **sizes, tiles=TILES)
    pivots = x.view(samples, num_rows, channels)[:, 0].float()
    center, scale = center_and_scale(pivots, sums.double().sum(2), num_rows, norm)
    inner = 1 if sample_dims == 1 else x.shape[1]
    strides = (out.stride(0), 0 if sample_dims == 1 else out.stride(1))
    _apply_kernel[(samples, triton.cdiv(num_rows, tile_rows))](
        *(x, out, center, scale, norm.bias.float(), num_rows, channels, inner, *strides),
        **sizes,
        with_silu=with_silu,
    )
