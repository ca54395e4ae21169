"""What a benchmark ran on. Standard library alone; torch is asked only if it is there."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import tokpipe

LIBRARIES = (
    *("torch", "triton", "ray", "pyarrow", "numpy", "decord", "av", "torchcodec", "fsspec", "s3fs"),
)
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")


def describe() -> dict[str, Any]:
    """Processor, cores, memory, devices, versions and date, as JSON."""
    info = _cpu_info()
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": info.get("model name", platform.processor() or platform.machine()),
        "cpu_flags": [name for name in CPU_FLAGS if name in info.get("flags", "").split()],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "gpu": _gpu(),
        "python": platform.python_version(),
        "tokpipe": tokpipe.__version__,
        "libraries": _versions(),
    }


def _cpu_info() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text().partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _gpu() -> str | None:
    try:
        import torch
    except ImportError:
        return None
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
