"""Says where float32 keeps its 24 bits, and where PyTorch may round it to TF32."""

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
def tf32_convolutions(device: torch.device) -> Iterator[None]:
    """Convolutions of float32 within may round their factors to 11 bits, on GPUs, which do that
    several times as fast."""
    if device.type != "cuda":
        yield
        return
    before = _backends.cudnn.conv.fp32_precision
    _backends.cudnn.conv.fp32_precision = "tf32"
    try:
        yield
    finally:
        _backends.cudnn.conv.fp32_precision = before


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
