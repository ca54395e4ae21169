"""The encoder class: the hardware and drivers that can round a code differently, in a line."""

import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path

import torch

_ONEDNN = {
    "SSE41": "sse4_1",
    "AVX": "avx",
    "AVX2": "avx2",
    "AVX2_VNNI": "",
    "AVX2_VNNI_2": "avx_ne_convert",
    "AVX512_CORE": "avx512bw",
    "AVX512_CORE_VNNI": "",
    "AVX512_CORE_BF16": "avx512_bf16",
    "AVX512_CORE_FP16": "avx512_fp16",
    "AVX512_CORE_AMX": "amx_bf16",
    "AVX512_CORE_AMX_FP16": "amx_fp16",
}
"""Names of oneDNN's instruction sets, ascending, and the CPU flag that each needs; none for those
that only change integers. Of 5,120 codes in bfloat16, 3 to 5 differ between any two of AVX2,
AVX512_CORE and AVX512_CORE_AMX, and 4 between ATen's DEFAULT and AVX512; the number of threads
changed none."""


def encoder_class(device: torch.device) -> str:
    """Describe what encodes on ``device``: equal texts mean equal codes."""
    if device.type != "cuda":
        return cpu_class(
            platform.machine(),
            torch.backends.cpu.get_cpu_capability(),
            _text_of("/proc/cpuinfo"),
            os.environ,
        )
    gpu, cudnn = torch.cuda.get_device_properties(device), torch.backends.cudnn.version() or 0
    driver = re.search(r"\b\d{3,}\.\d+", _text_of("/proc/driver/nvidia/version"))
    versions = {
        "driver": driver and driver[0],
        "CUDA": torch.version.cuda,
        "cuDNN": f"{cudnn // 10_000}.{cudnn // 100 % 100}.{cudnn % 100}",
    }
    known = " ".join(f"{name} {version}" for name, version in versions.items() if version)
    return f"cuda {gpu.name} sm_{gpu.major}{gpu.minor} {known}"


def cpu_class(machine: str, aten: str, cpuinfo: str, environ: Mapping[str, str]) -> str:
    """Describe a CPU by its vendor and the instruction sets that ATen and oneDNN use on it.

    MKL chooses its kernels by the vendor, and Arm's library by the part.
    """
    found = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", cpuinfo, re.MULTILINE))
    if "flags" not in found:
        part = found.get("CPU implementer", ""), found.get("CPU part", "")
        has = [one for one in ("sve", "bf16") if one in found.get("Features", "").split()]
        return " ".join(filter(None, ("cpu", machine, *part, aten, *has)))
    flags = found["flags"].split()
    cap = environ.get("ONEDNN_MAX_CPU_ISA") or environ.get("DNNL_MAX_CPU_ISA", "")
    onednn = "none"
    for name, flag in _ONEDNN.items():
        onednn = name if flag in flags else onednn
        if name == cap.upper():
            break
    return f"cpu {machine} {found.get('vendor_id', '')} {aten} oneDNN {onednn}"


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
