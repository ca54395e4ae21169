"""What large matrix products and copies reach: what other sections compare with."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.record import Finding, Row
from benchmarks.gpu.setting import Setting
from benchmarks.roofline import H200

PRODUCTS, COPIES = "bf16 products, FLOP/s", "copies, bytes/s"
"""Names of the values that are kept."""


def run(setting: Setting) -> Iterator[Finding]:
    side, size = setting.of(8192, 64), setting.of(2**32, 2**16)
    matmul: Any = torch.backends.cuda.matmul
    products = {}
    for dtype, what in ((torch.bfloat16, "bf16"), (torch.float32, "TF32")):
        a, b = (torch.randn(side, side, device=setting.device).to(dtype) for _ in range(2))
        matmul.fp32_precision = "tf32"
        products[what] = 2 * side**3 / setting.seconds(partial(torch.matmul, a, b))
        matmul.fp32_precision = "ieee"
        yield Row(
            {
                "what": f"{what} product of {side}x{side} random numbers",
                "TFLOP/s": setting.measured(products[what] / 1e12),
                "GB/s": "",
            }
        )
    source = torch.zeros(size, dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    copies = 2 * size / setting.seconds(lambda: target.copy_(source))
    yield Row(
        {
            "what": f"copy of {size / 2**30:.3g} GiB, read and written",
            "TFLOP/s": "",
            "GB/s": setting.measured(copies / 1e9),
        }
    )
    if not setting.is_dry:
        setting.keep(PRODUCTS, products["bf16"])
        setting.keep(COPIES, copies)
    for name, found, assumed in (
        ("products", products["bf16"], H200.bf16_flops),
        ("copies", copies, H200.bytes_per_s),
    ):
        yield setting.claim(
            f"{name} reach the rate of an H200 that predictions assume, to 10 %",
            abs(found / assumed - 1) < 0.1,
            f"{found / assumed:.0%} of {assumed:.3g}/s",
        )
