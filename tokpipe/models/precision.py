"""Controls where PyTorch may round float32 to TF32."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# The type stubs lack the switches of single operations.
_backends: Any = torch.backends


def forbid_reduced_float32() -> None:
    """Keep full float32 in all convolutions and matrix products of this process."""
    for operation in (
        _backends.cuda.matmul,
        _backends.cudnn.conv,
        _backends.mkldnn.matmul,
        _backends.mkldnn.conv,
    ):
        operation.fp32_precision = "ieee"


@contextmanager
def tf32_convolutions(device: torch.device) -> Iterator[None]:
    """Let float32 convolutions on GPUs round their inputs to 11 bits, several times as fast."""
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
    """Compute matrix products in full float32, whatever autocast and TF32 settings say."""
    matmul = _backends.cuda.matmul if device.type == "cuda" else _backends.mkldnn.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "ieee"
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        matmul.fp32_precision = before
