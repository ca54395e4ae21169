"""Which benchmarks there are: each a module with a function ``run``, imported when it is asked for.

``run(quick)`` yields its results one by one. ``quick`` asks for a shorter run on smaller data,
which shows that the benchmark works and gives no figure to quote.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import cast

from benchmarks.figures import Result

Benchmark = Callable[[bool], Iterator[Result]]

BENCHMARKS: dict[str, str] = {
    "encoder": "the encode path against eager float32, and against FLOPs and bandwidth",
    "decode": "frames per second of each decoder against ffmpeg, by codec and size",
    "pipeline": "a whole job against its slowest stage alone; how busy the accelerator is",
    "control": "clips per second of dispatcher and Ray with stages that do nothing",
    "plan": "10 million clips planned from Parquet: seconds and memory",
    "resume": "10 million committed clips taken up again: seconds and memory",
    "audit": "the manifest of 10 million clips audited: seconds and memory",
    "storage": "bits per code against the entropy of the codes",
    "reader": "codes per second against raw arrays, first and second epoch",
    "peers": "the same job by a DataLoader loop and by hand-written Ray Data",
}
"""What each measures, by name."""


def load(name: str) -> Benchmark:
    """Import one benchmark, and with it what it needs."""
    module = importlib.import_module(f"benchmarks.{name}")
    return cast("Benchmark", module.run)
