"""What else decides the bits of a code: settings of the process, and hardware as encoder classes,
lines that name the hardware and drivers that can round a code differently."""

import ctypes
import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch

from tokpipe.errors import ConfigError

# The type stubs lack the switches of single operations.
_backends: Any = torch.backends
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_PAD_BYTES = 64 * 2**20

_FLAGS = re.compile(
    r"\b(avx2|avx_ne_convert|avx512bw|avx512_bf16|avx512_fp16|amx_bf16|amx_fp16|sve|bf16)\b"
)
"""CPU flags by which PyTorch and its libraries choose kernels. Of 5,120 codes in bfloat16, 3 to 5
differ between any two of AVX2, AVX-512 and AMX; the number of threads changed none."""


def make_repeatable() -> bool:
    """Keep full float32 in convolutions and products, and choose no kernel by timing, in the whole
    process. Return whether anything has changed since the last call."""
    cuda, cudnn, cpu = _backends.cuda, _backends.cudnn, _backends.mkldnn
    operations = cuda.matmul, cudnn.conv, cpu.matmul, cpu.conv
    wanted: list[tuple[Any, str, Any]] = [(one, "fp32_precision", "ieee") for one in operations]
    wanted += [(cudnn, "benchmark", False), (cudnn, "deterministic", True)]
    changed = [one for one in wanted if getattr(*one[:2]) != one[2]]
    for setting in changed:
        setattr(*setting)
    return bool(changed)


def usable_device(name: str) -> torch.device:
    """Return a device, for ``auto`` a GPU if there is one; ConfigError if torch cannot use it."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(1, device=name).device
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        problem = f"--device {name}: torch cannot use it here ({error}). Use cpu or auto"
        raise ConfigError(problem) from error


def computes(device: torch.device) -> bool:
    """Whether a device still computes: some errors make a CUDA context unusable."""
    try:
        return bool(torch.ones(1, device=device).add_(1).item() == 2)
    except RuntimeError:
        return False


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


def is_autocast(device: torch.device) -> bool:
    """Whether autocast converts what is computed on ``device``, where "meta" has none."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


@contextmanager
def exact_float32_products(device: torch.device) -> Iterator[None]:
    """Compute matrix products in full float32, whatever autocast and TF32 settings say."""
    matmul = _backends.cuda.matmul if device.type == "cuda" else _backends.mkldnn.matmul
    off = torch.autocast(device.type, enabled=False) if is_autocast(device) else nullcontext()
    with _precision(matmul, "ieee"), off:
        yield


def keep_freed_memory() -> None:
    """Stop the C library, if it is glibc, from returning freed memory to the kernel, which would
    have to make each page of a large tensor again: on a virtual machine, adding two tensors of 70
    MB took 80 ms instead of 11."""
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        for setting in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, _PAD_BYTES)):
            mallopt(*setting)


def encoder_class(device: torch.device) -> str:
    """Describe what encodes on ``device``: equal texts mean equal codes."""
    if device.type != "cuda":
        aten = torch.backends.cpu.get_cpu_capability()
        return cpu_class(platform.machine(), aten, _text_of("/proc/cpuinfo"), os.environ)
    gpu = torch.cuda.get_device_properties(device)
    driver = re.search(r"\b\d{3,}\.\d+", _text_of("/proc/driver/nvidia/version"))
    return (
        f"cuda {gpu.name} sm_{gpu.major}{gpu.minor} driver {driver[0] if driver else 'unknown'} "
        f"CUDA {torch.version.cuda} cuDNN {torch.backends.cudnn.version()}"
    )


def cpu_class(machine: str, aten: str, cpuinfo: str, environ: Mapping[str, str]) -> str:
    """Describe a CPU by its model, since its caches decide in which blocks a kernel adds up, and by
    the instruction sets that kernels are chosen by."""
    found = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", cpuinfo, re.MULTILINE))
    arm = f"{found.get('CPU implementer', '')} {found.get('CPU part', '')}".strip()
    model = found.get("model name") or arm or platform.processor()
    cap = environ.get("ONEDNN_MAX_CPU_ISA") or environ.get("DNNL_MAX_CPU_ISA")
    isa = [aten, *sorted(_FLAGS.findall(found.get("flags") or found.get("Features", "")))]
    isa += [f"oneDNN <= {cap.upper()}"] if cap else []
    return " ".join(["cpu", machine, *model.split(), *isa])


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
