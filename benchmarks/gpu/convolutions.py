"""The six shapes of bfloat16 convolutions in the published encoder, by cuDNN."""

import re
from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.rates import PRODUCTS
from benchmarks.gpu.record import Cell, Finding, Left, Row
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.timeline import short

SHAPES = (
    (128, 128, 17, 256),
    (128, 256, 9, 128),
    (256, 256, 9, 128),
    (256, 512, 5, 64),
    (512, 512, 5, 64),
    (512, 512, 5, 32),
)
"""Channels in and out, frames, and rows and columns, of 17 frames of 256x256 pixels."""
TINY = ((32, 64, 2, 4),)
BATCHES, TINY_BATCHES = (4, 1, 8), (1, 2)
_CONVERTS = re.compile("nchwToNhwc|nhwcToNchw|nchw2nhwc|transpose|permute", re.IGNORECASE)
_ADDS = re.compile("elementwise|add", re.IGNORECASE)


def run(setting: Setting) -> Iterator[Finding]:
    errors, shares, exact = list[float](), list[float](), True
    converting, extra, seen = set[str](), set[str](), set[str]()
    peak = setting.values.get(PRODUCTS)
    for shape in setting.of(SHAPES, TINY):
        name = "{}→{} channels, {}x{}x{}".format(*shape, shape[-1])
        first: Tensor | None = None
        for batch in setting.of(BATCHES, TINY_BATCHES):
            if setting.left_s < 5:
                yield Left(f"{name}, batch {batch}", "its time is used up")
                continue
            x, weight, bias = _operands(setting, shape, batch)
            flops = 2 * weight.numel() * batch * shape[2] * shape[3] ** 2
            plain = partial(_convolution, x, weight, None)
            biased = partial(_convolution, x, weight, bias)
            seconds, y = setting.seconds(plain), plain()
            names = list(dict.fromkeys(one.name for one in setting.kernels(plain)))
            seen |= {*names}
            converting |= {one for one in names if _CONVERTS.search(one)}
            extra |= {one for one in names if _ADDS.search(one)}
            rates = {
                "TFLOP/s": seconds,
                "TFLOP/s with its bias": setting.seconds(biased),
                "TFLOP/s if cuDNN may try kernels": _tried(setting, plain),
            }
            row: dict[str, Cell] = {"shape": name, "batch": batch}
            row |= {key: setting.measured(flops / took / 1e12) for key, took in rates.items()}
            if peak:
                shares.append(flops / seconds / peak)
                row["share of products"] = setting.measured(shares[-1], 3)
            row["kernels"] = None if setting.is_dry else ", ".join(map(short, names))
            if first is None:
                first = y[:1].clone()
                errors += (error := _error(x[:1], weight, first))
                more = {one.name for one in setting.kernels(biased)} - {*names}
                row["more with its bias"] = None if setting.is_dry else ", ".join(map(short, more))
                row["error to float32"] = error[0] if error else "float32 does not fit"
            row["bits of the first batch"] = torch.equal(y[:1], first)
            exact &= bool(row["bits of the first batch"])
            yield Row(row)
    worst = max(errors, default=float("nan"))
    yield setting.claim("sums are right", worst < 0.01, f"largest error {worst:.2g}")
    for text, wrong in (
        ("no call converts layouts", converting),
        ("without a bias there is one pass", extra),
    ):
        found = ", ".join(wrong) if seen else "the profiler saw no kernels"
        yield setting.claim(text, not wrong if seen else None, found)
    yield setting.claim("a clip has the same bits in batches of 1, 4 and 8", exact)
    yield setting.claim(
        "convolutions reach 75 % of the rate of products",
        min(shares) >= 0.75 if shares else None,
        f"{min(shares):.0%} to {max(shares):.0%}" if shares else "",
    )


def _operands(
    setting: Setting, shape: tuple[int, int, int, int], batch: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Input behind two past frames, weights and bias; the first clip is the same in any batch."""
    channels, out, frames, side = shape
    generator = torch.Generator(setting.device).manual_seed(0)

    def random(*sizes: int) -> Tensor:
        values = torch.randn(sizes, generator=generator, device=setting.device)
        return values.to(torch.bfloat16)

    weight, bias = random(out, channels, 3, 3, 3).mul_((27 * channels) ** -0.5), random(out)
    clips = [random(1, channels, frames + 2, side, side) for _ in range(batch)]
    last = torch.channels_last_3d
    return (
        torch.cat(clips).contiguous(memory_format=last),
        weight.contiguous(memory_format=last),
        bias,
    )


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv3d(x, weight, bias, padding=(0, 1, 1))


def _error(x: Tensor, weight: Tensor, y: Tensor) -> list[float]:
    """Relative to the sums in float32 of the same numbers; nothing if there is no memory."""
    try:
        wanted = _convolution(x.float(), weight.float(), None)
    except RuntimeError:
        return []
    return [float((y.float() - wanted).norm() / wanted.norm())]


def _tried(setting: Setting, call: "partial[Tensor]") -> float:
    """Seconds where cuDNN may choose the fastest of its kernels by trying them."""
    torch.backends.cudnn.benchmark = not setting.is_dry
    try:
        return setting.seconds(call)
    finally:
        torch.backends.cudnn.benchmark = False
