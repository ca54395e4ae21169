"""The encoder class: the hardware and drivers that can round a code differently, in a line."""

import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path

import torch

_FLAGS = re.compile(
    r"\b(avx2|avx_ne_convert|avx512bw|avx512_bf16|avx512_fp16|amx_bf16|amx_fp16|sve|bf16)\b"
)
"""CPU flags by which PyTorch and its libraries choose kernels. Of 5,120 codes in bfloat16, 3 to 5
differ between any two of AVX2, AVX-512 and AMX; the number of threads changed none."""


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
