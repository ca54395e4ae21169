"""Keeps float32 at its 24 bits, where PyTorch may be allowed to round it to TF32 or bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# The stubs do not know the switches of single operations.
_backends: Any = torch.backends


def forbid_reduced_float32() -> None:
    """Let no convolution or matrix product of this process round float32, on any device."""
    for operation in (
        _backends.cuda.matmul,
        _backends.cudnn.conv,
        _backends.mkldnn.matmul,
        _backends.mkldnn.conv,
    ):
        operation.fp32_precision = "ieee"


@contextmanager
def exact_float32_products(device: torch.device) -> Iterator[None]:
    """Matrix products within are of whole float32 numbers, whatever autocast or TF32 say."""
    matmul = _backends.cuda.matmul if device.type == "cuda" else _backends.mkldnn.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "ieee"
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        matmul.fp32_precision = before
