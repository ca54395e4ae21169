"""Controls where PyTorch may round float32 to TF32."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

# The type stubs lack the switches of single operations.
_backends: Any = torch.backends


def forbid_reduced_float32() -> None:
    """Keep full float32 in all convolutions and matrix products of this process."""
    cuda, cudnn, cpu = _backends.cuda, _backends.cudnn, _backends.mkldnn
    for operation in (cuda.matmul, cudnn.conv, cpu.matmul, cpu.conv):
        operation.fp32_precision = "ieee"


@contextmanager
def _precision(operation: Any, precision: str) -> Iterator[None]:
    before = operation.fp32_precision
    operation.fp32_precision = precision
    try:
        yield
    finally:
        operation.fp32_precision = before


def tf32_convolutions(device: torch.device) -> AbstractContextManager[None]:
    """Let float32 convolutions on GPUs round their inputs to 11 bits, several times as fast."""
    return _precision(_backends.cudnn.conv, "tf32") if device.type == "cuda" else nullcontext()


@contextmanager
def exact_float32_products(device: torch.device) -> Iterator[None]:
    """Compute matrix products in full float32, whatever autocast and TF32 settings say."""
    matmul = _backends.cuda.matmul if device.type == "cuda" else _backends.mkldnn.matmul
    with _precision(matmul, "ieee"), torch.autocast(device.type, enabled=False):
        yield
