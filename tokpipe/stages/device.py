"""The device that encodes: copies to and from it, and what its errors mean."""

import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor

from tokpipe.errors import ConfigError, NodeTrouble, chain_of

_MEMORY = re.compile(
    r"out of memory|out_of_memory|can't allocate memory|cannot allocate memory|alloc_failed"
    r"|allocation_failed|cudaErrorMemoryAllocation|unable to find an engine"
    r"|CUBLAS_STATUS_NOT_INITIALIZED",
    re.IGNORECASE,
)
"""cuDNN looks for an engine whose workspace fits, and cuBLAS allocates when it is first used: both
say in other words that memory is short (github.com/pytorch/pytorch/issues/108645)."""

_BROKEN = re.compile(
    r"illegal memory access|illegal instruction|illegal address|misaligned address"
    r"|unspecified launch failure|invalid program counter|invalid address space"
    r"|hardware stack error|uncorrectable|\becc\b|fallen off the bus|gpu is lost|nvlink"
    r"|launch timed out|devices? unavailable|busy or unavailable|driver shutting down"
    r"|NVIDIA driver|CUDA driver (version|init)|no CUDA GPUs|unknown error|no CUDA-capable device"
    r"|cudaErrorIllegalAddress|cudaErrorLaunchFailure",
    re.IGNORECASE,
)
"""After these a CUDA context answers every call with the same error, in all of its process."""

Trouble = Literal["memory", "broken", "other"]


def trouble_of(error: BaseException) -> Trouble:
    """What an error of a batch means, by its type, its text and those of its causes.

    ``memory``: a smaller batch may do. ``broken``: the device or its driver is at fault.
    """
    chain = list(chain_of(error, contexts=True))
    text = "\n".join(map(str, chain))
    kinds = torch.OutOfMemoryError, MemoryError
    if any(isinstance(one, kinds) for one in chain) or _MEMORY.search(text):
        return "memory"
    return "broken" if _BROKEN.search(text) else "other"


@contextmanager
def blaming_device(device: object, *troubles: Trouble) -> Iterator[None]:
    """Raise NodeTrouble in place of errors that mean such trouble."""
    try:
        yield
    except Exception as error:
        cause = error.__cause__ if isinstance(error, ConfigError) else error
        if cause is None or trouble_of(cause) not in troubles:
            raise
        raise NodeTrouble(f"encode: {device} is broken or in use: {error}") from error


def free_frames(error: BaseException) -> None:
    """Free the tensors that the stack of an error still refers to, and keep its lines."""
    for one in chain_of(error, contexts=True):
        traceback.clear_frames(one.__traceback__)


class Device:
    """Copies that overlap with computing, on GPUs: each call returns before its copy is done."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._uploads: Any = torch.cuda.Stream(device) if device.type == "cuda" else None

    def empty(self, shape: tuple[int, ...]) -> Tensor:
        """Memory of the host for pixels, uint8, from where ``upload`` is fastest."""
        return torch.empty(shape, dtype=torch.uint8, pin_memory=self._uploads is not None)

    def upload(self, pixels: Tensor) -> Tensor:
        """``pixels`` on the device, copied while it computes what was launched before."""
        if self._uploads is None:
            return pixels.to(self._device)
        current = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._uploads):
            copy = pixels.to(self._device, non_blocking=True)
        current.wait_stream(self._uploads)
        copy.record_stream(current)
        return copy

    def read_back(self, codes: Tensor) -> Callable[[], NDArray[Any]]:
        """A function that waits for ``codes``, and for nothing that is launched after this call.

        Read when they are needed, codes would queue behind the batch that was launched meanwhile.
        """
        if self._uploads is None:
            return codes.cpu().numpy
        host = torch.empty(codes.shape, dtype=codes.dtype, pin_memory=True)
        host.copy_(codes, non_blocking=True)
        done = torch.cuda.Event()
        done.record()

        def wait() -> NDArray[Any]:
            done.synchronize()
            return host.numpy()

        return wait
