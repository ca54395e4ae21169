"""The Triton kernels at shapes of real jobs, against float64, and how fast they are."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.rates import COPIES
from benchmarks.gpu.record import Finding, Left, Row
from benchmarks.gpu.setting import Setting

SHAPES = (
    (1, 17, 256, 256, 128),
    (1, 32, 256, 256, 128),
    (1, 17, 512, 512, 128),
    (1, 17, 480, 854, 128),
    (1, 17, 720, 1280, 128),
    (1, 20, 720, 1280, 128),  # more than 2^31 elements
    (4, 9, 128, 128, 256),
)
TINY = ((2, 2, 2, 3, 64),)
TOLERANCE = 1e-4
"""Of normalized values in float32, which are mostly between -4 and 4."""


def run(setting: Setting) -> Iterator[Finding]:
    from tokpipe.models import triton_kernels as kernels

    if setting.is_dry:
        kernels.TILES = 2  # an empty one takes Triton's interpreter as long as a full one
    worst, slowest, all_exact = 0.0, float("inf"), True
    copies = setting.values.get(COPIES)
    for shape in setting.of(SHAPES, TINY):
        numel = torch.Size(shape).numel()
        if setting.free_bytes() < 16 * numel or setting.left_s < 5:
            yield Left(name_of(shape), "too little memory or time is left")
            continue
        for row in (*_norms(setting, kernels, shape), *_sums(setting, kernels, shape)):
            error = row.cells["largest error"]
            if isinstance(error, float):
                worst = max(worst, error)
            all_exact &= row.cells["exact"] is not False
            rate = row.cells["GB/s"]
            if copies and isinstance(rate, float) and numel > 2**27:
                slowest = min(slowest, rate * 1e9 / copies)
            yield row
    yield setting.claim(
        "norms of every shape agree with float64", worst < TOLERANCE, f"largest error {worst:.2g}"
    )
    yield setting.claim("residual sums are exact, and clips alone have the same bits", all_exact)
    yield setting.claim(
        "kernels on large tensors reach 80 % of the rate of copies",
        slowest >= 0.8 if slowest < float("inf") else None,
        f"the slowest {slowest:.0%}" if slowest < float("inf") else "",
    )


def name_of(shape: tuple[int, ...]) -> str:
    clips, frames, height, width, channels = shape
    return f"{clips} of {frames}x{height}x{width}, {channels} channels"


def _random(setting: Setting, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=setting.device).normal_(3, 2)


def _norm(setting: Setting, channels: int) -> nn.GroupNorm:
    torch.manual_seed(0)
    norm = nn.GroupNorm(32, channels, 1e-6, device=setting.device).requires_grad_(False)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.uniform_(norm.bias, -1, 1)
    return norm


def _norms(setting: Setting, kernels: Any, shape: tuple[int, ...]) -> Iterator[Row]:
    write, numel = kernels.norm_triton, torch.Size(shape).numel()
    norm, bias = _norm(setting, shape[-1]), torch.linspace(-2, 2, shape[-1], device=setting.device)
    for dtype, dims, with_bias in (
        (torch.float32, 1, False),
        (torch.float32, 2, False),
        (torch.bfloat16, 1, True),
    ):
        x = _random(setting, shape, dtype)
        given = {"sample_dims": dims, "with_silu": True, "bias": bias if with_bias else None}
        out = torch.empty(shape, dtype=torch.bfloat16, device=setting.device)
        seconds = setting.seconds(partial(write, x, out, norm, **given))
        alone = torch.empty_like(out[-1:])
        write(x[-1:], alone, norm, **given)
        exact = torch.equal(alone, out[-1:])
        del out, alone
        out = torch.empty(shape, dtype=torch.float32, device=setting.device)
        write(x, out, norm, **given)
        error = _largest_error(x, out, norm, dims, bias if with_bias else None)
        yield Row(
            {
                "shape": name_of(shape),
                "pass": f"{'clip' if dims == 1 else 'frame'} norm of {_short(dtype)}"
                + (" and a bias" if with_bias else ""),
                "GB/s": setting.measured(numel * (2 * x.element_size() + 2) / seconds / 1e9),
                "largest error": error,
                "exact": exact,
            }
        )


def _sums(setting: Setting, kernels: Any, shape: tuple[int, ...]) -> Iterator[Row]:
    add, write = kernels.add_triton, kernels.norm_triton
    norm, bias = _norm(setting, shape[-1]), torch.linspace(-2, 2, shape[-1], device=setting.device)
    x, h = (_random(setting, shape, dtype) for dtype in (torch.float32, torch.bfloat16))
    seconds = setting.seconds(lambda: add(x, h, bias, sample_dims=1))
    y, sums = add(x, h, bias, sample_dims=1)
    frames = zip(x.flatten(0, 1), h.flatten(0, 1), y.flatten(0, 1), strict=True)
    exact = all(torch.equal(sum_, one + (more.float() + bias)) for one, more, sum_ in frames)
    out = torch.empty(shape, dtype=torch.float32, device=setting.device)
    write(y, out, norm, sample_dims=1, with_silu=True, sums=sums)
    yield Row(
        {
            "shape": name_of(shape),
            "pass": "residual sum, and a norm from its sums",
            "GB/s": setting.measured(torch.Size(shape).numel() * (4 + 2 + 4) / seconds / 1e9),
            "largest error": _largest_error(y, out, norm, 1, None),
            "exact": exact,
        }
    )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _largest_error(
    x: Tensor, out: Tensor, norm: nn.GroupNorm, dims: int, bias: Tensor | None
) -> float:
    """The largest difference of ``out`` from SiLU of the norm in float64, frame by frame."""
    worst = 0.0
    for clip, written in zip(x, out, strict=True):
        samples = (one.unsqueeze(0 if dims == 1 else 1) for one in (clip, written))
        for frames, results in zip(*samples, strict=True):
            num = frames.numel() // norm.num_groups
            mean = sum(_grouped(one, norm, bias).sum((0, 2)) for one in frames) / num
            centered = (_grouped(one, norm, bias) - mean[:, None] for one in frames)
            variance = sum(one.square_().sum((0, 2)) for one in centered) / num
            scale = (variance + norm.eps).rsqrt()
            for frame, result in zip(frames, results, strict=True):
                y = (_grouped(frame, norm, bias) - mean[:, None]) * scale[:, None]
                y = y.flatten(1) * norm.weight + norm.bias
                y *= torch.sigmoid(y)
                worst = max(worst, float((y.view(result.shape) - result).abs().max()))
    return worst


def _grouped(frame: Tensor, norm: nn.GroupNorm, bias: Tensor | None) -> Tensor:
    """(H, W, C) -> (H W, groups, C / groups) float64, with ``bias`` added."""
    wide = frame.double() if bias is None else frame.double() + bias
    return wide.view(-1, norm.num_groups, frame.shape[-1] // norm.num_groups)
