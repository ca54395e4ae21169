"""Errors after which a GPU's context is unusable, each in a process that it may break.

As a program it is one of these processes: ``python -m benchmarks.gpu.faults KIND``.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.gpu.record import Finding, Row
from benchmarks.gpu.setting import Setting
from tokpipe.stages.device import trouble_of

FAR = 2**45
"""Bytes behind a tensor: no address of this process."""


def run(setting: Setting) -> Iterator[Finding]:
    for kind in FAULTS:
        if setting.is_dry:
            error = RuntimeError(f"CUDA error: a stand-in for {kind}")
            found = describe(error, lambda: None)
        else:
            found = _in_process(kind)
        yield Row({"fault": kind, **found})
        if kind == "illegal access":
            yield setting.claim(
                "an illegal access is an error that says so, and lasts",
                "illegal" in str(found.get("text")) and found.get("works afterwards") is False,
                str(found.get("text")),
            )
            known = str(found.get("tokpipe calls it"))
            yield setting.claim(
                "tokpipe takes it for a fault of the device, not of a clip",
                known == "broken",
                known,
            )


def _in_process(kind: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.gpu.faults", kind]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        return {"text": "the process hung, and was ended after 30 s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    found: dict[str, Any] = json.loads(lines[-1]) if lines else {"text": done.stderr[-400:]}
    return {**found, "exit code": done.returncode}


def describe(error: Exception, works: Callable[[], object]) -> dict[str, Any]:
    """What an error says, and whether ``works`` does afterwards."""
    try:
        works()
        again = ""
    except Exception as other:
        again = f"{type(other).__name__}: {str(other)[:120]}"
    return {
        "type": f"{type(error).__module__}.{type(error).__qualname__}",
        "is a RuntimeError": isinstance(error, RuntimeError),
        "error code": str(getattr(error, "error_code", "")),
        "text": str(error)[:300],
        "works afterwards": not again,
        "says then": again,
        "tokpipe calls it": trouble_of(error),
    }


def illegal_access() -> None:
    from benchmarks.gpu.far_store import far_store

    far_store[(1,)](torch.zeros(4, device="cuda"), FAR)
    torch.cuda.synchronize()


def index_out_of_range() -> None:
    values, far = torch.zeros(4, device="cuda"), torch.tensor([10**6], device="cuda")
    float(values[far].sum())


FAULTS = {"illegal access": illegal_access, "index out of range": index_out_of_range}

if __name__ == "__main__":
    torch.zeros(1, device="cuda")
    try:
        FAULTS[sys.argv[1]]()
        print(json.dumps({"text": "no error was raised"}))
    except Exception as error:
        print(json.dumps(describe(error, lambda: torch.ones(1, device="cuda").item())))
