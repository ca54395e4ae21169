"""What runs here, and whether tokpipe's kernels for GPUs work."""

import datetime
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator

import torch

import tokpipe
from benchmarks.gpu.record import Cell, Finding, Row
from benchmarks.gpu.setting import Setting
from tokpipe.models.group_norm import working_kernels
from tokpipe.models.process import encoder_class

NVIDIA_SMI = "driver_version,clocks.sm,clocks.max.sm,power.limit,ecc.mode.current,temperature.gpu"


def run(setting: Setting) -> Iterator[Finding]:
    for what, found in facts(setting):
        yield Row({"what": what, "found": found})
    norms = "" if setting.is_dry else working_kernels(setting.device)[1]
    yield setting.claim(
        "Triton's kernels work here, and pass their self-test", norms == "triton", norms
    )
    yield setting.claim("there is a C compiler, which Triton needs", bool(compiler()), compiler())
    try:
        text = f"reading it returns {torch.backends.cudnn.allow_tf32}"
    except RuntimeError as error:
        text = f"reading it raises {type(error).__name__}: {str(error)[:120]}"
    yield Row({"what": "the former switch of TF32, once the new one is set", "found": text})


def facts(setting: Setting) -> Iterator[tuple[str, Cell]]:
    yield "date", datetime.datetime.now(datetime.UTC).date().isoformat()
    yield "tokpipe", tokpipe.__version__
    yield "Python", platform.python_version()
    for name in ("torch", "triton", "numpy"):
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, "not installed"
    yield "CUDA", torch.version.cuda or "not in this build of torch"
    yield "cuDNN", None if setting.is_dry else torch.backends.cudnn.version()
    yield "C compiler", compiler() or "none"
    if setting.is_dry:
        yield from ((name, None) for name in ("GPU", "memory, GB", NVIDIA_SMI))
        return
    gpu = torch.cuda.get_device_properties(setting.device)
    yield "GPU", f"{gpu.name}, sm_{gpu.major}{gpu.minor}, {gpu.multi_processor_count} SMs"
    yield "memory, GB", gpu.total_memory / 1e9
    yield "free memory, GB", torch.cuda.mem_get_info(setting.device)[0] / 1e9
    yield "encoder class", encoder_class(setting.device)
    yield "PYTORCH_CUDA_ALLOC_CONF", os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "not set")
    yield NVIDIA_SMI, nvidia_smi()


def compiler() -> str:
    """The C compiler that Triton would use, or ""."""
    found = (os.environ.get("CC"), *map(shutil.which, ("gcc", "clang", "cc")))
    return next((one for one in found if one), "")


def nvidia_smi() -> str:
    command = ["nvidia-smi", f"--query-gpu={NVIDIA_SMI}", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi does not run here: {type(error).__name__}"
