"""The machine that a benchmark ran on."""

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

import tokpipe

LIBRARIES = (*("torch", "triton", "ray", "pyarrow", "numpy", "decord", "av", "fsspec", "s3fs"),)
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")


def describe() -> dict[str, Any]:
    """Processor, cores, memory, devices, versions and date, as JSON."""
    path = Path("/proc/cpuinfo")
    first = path.read_text().partition("\n\n")[0] if path.exists() else ""
    pairs = (line.partition(":") for line in first.splitlines())
    info = {name.strip(): value.strip() for name, _, value in pairs}
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": info.get("model name", platform.processor() or platform.machine()),
        "cpu_flags": [name for name in CPU_FLAGS if name in info.get("flags", "").split()],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "tokpipe": tokpipe.__version__,
        "libraries": versions,
    }
