"""Which norms a process uses with and without a C compiler, and what it says about it.

As a program it is one of these processes: ``python -m benchmarks.gpu.compiler``.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.encoder import clips_for, encoder_for
from benchmarks.gpu.record import Finding, Row
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.versions import compiler
from tokpipe.models.group_norm import working_kernels

BATCH = 8


def run(setting: Setting) -> Iterator[Finding]:
    setting.free_bytes()  # which the other processes need
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for name, environment in (
            ("as it is", dict(os.environ)),
            ("no compiler", without_compiler(Path(folder))),
        ):
            environment["TRITON_CACHE_DIR"] = str(Path(folder, name))
            found[name] = describe(setting) if setting.is_dry else _in_process(environment)
            yield Row({"environment": name, **found[name]})
    bare = found["no compiler"]
    yield setting.claim(
        "without a compiler the codes go on, by PyTorch's norms, and a warning says so",
        "no C compiler" in str(bare.get("norms")) and bool(bare.get("warning")),
        str(bare.get("norms") or bare.get("error", "")),
    )
    yield setting.claim(
        "with one, Triton's kernels are used without a warning",
        found["as it is"].get("norms") == "triton" and not found["as it is"].get("warning"),
        str(found["as it is"].get("warning") or found["as it is"].get("error", "")),
    )


def without_compiler(folder: Path) -> dict[str, str]:
    """The environment without CC, and with a PATH that leads to no compiler."""
    empty = folder / "bin"
    empty.mkdir()
    kept = {name: value for name, value in os.environ.items() if name not in ("CC", "CXX")}
    return {**kept, "PATH": str(empty)}


def _in_process(environment: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.gpu.compiler"]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        return {"error": "the process was ended after 30 s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        return {"error": f"exit code {done.returncode}: {done.stderr[-300:]}"}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def describe(setting: Setting) -> dict[str, Any]:
    """What this process uses, and how fast and large a batch is."""
    warnings = _Warnings()
    logging.getLogger("tokpipe").addHandler(warnings)
    started = time.perf_counter()
    norms = None if setting.is_dry else working_kernels(setting.device)[1]
    took = time.perf_counter() - started
    encoder, batch = encoder_for(setting), setting.of(BATCH, 1)
    x = clips_for(setting, batch)
    with torch.inference_mode():
        peak = setting.peak_bytes(lambda: encoder(x))
        seconds = setting.seconds(lambda: encoder(x))
    logging.getLogger("tokpipe").removeHandler(warnings)
    return {
        "compiler": compiler() or "none",
        "norms": norms,
        "self-test, s": setting.measured(took, 3),
        "chunks/s": setting.measured(batch / seconds),
        f"peak GB of a batch of {batch}": setting.measured(peak / 1e9),
        "warning": " ".join(warnings.texts)[:300],
    }


if __name__ == "__main__":
    print(json.dumps(describe(Setting(torch.device("cuda")))))
