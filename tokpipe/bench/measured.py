"""Runs a function in a process of its own, and says what it took there: time and peak memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Generic, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Measured(Generic[R]):
    """What a function returned, and what it took."""

    result: R
    seconds: float
    cpu_s: float
    """Of all threads, in the program and in the system."""
    peak_gb: float
    """Of the whole process, Python and libraries included."""
    before_gb: float
    """Peak of the process before the function began: what importing its module takes."""

    @property
    def costs(self) -> dict[str, float]:
        """Details of a figure."""
        return {
            "seconds": round(self.seconds, 2),
            "cpu_s": round(self.cpu_s, 2),
            "peak_gb": round(self.peak_gb, 3),
            "before_gb": round(self.before_gb, 3),
        }


def measured(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Measured[R]:
    """Call ``function`` in a fresh process; arguments and result are pickled."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measure, function, args, kwargs).result()


def _measure(
    function: Callable[..., R], args: tuple[object, ...], kwargs: dict[str, object]
) -> Measured[R]:
    before_gb, cpu, started = _peak_gb(), _cpu_s(), time.perf_counter()
    result = function(*args, **kwargs)
    seconds = time.perf_counter() - started
    return Measured(result, seconds, _cpu_s() - cpu, _peak_gb(), before_gb)


def _cpu_s() -> float:
    times = os.times()
    return times.user + times.system


def _peak_gb() -> float:
    # Not ru_maxrss, which a child takes over from the process that started it.
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e9
