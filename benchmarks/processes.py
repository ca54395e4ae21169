"""Runs a function in a fresh process, and measures what a process uses."""

import os
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Generic, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def in_fresh_process(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Return what ``function`` returns there; arguments and result are pickled."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


@dataclass(frozen=True, slots=True)
class Measured(Generic[R]):
    """What a function returned, and what it used."""

    result: R
    seconds: float
    cpu_s: float
    """Of all threads, in the program and in the system."""
    peak_gb: float
    """Of the whole process, Python and libraries included."""
    before_gb: float
    """Peak of the process before the function began, from importing its module."""

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
    return in_fresh_process(_measure, function, args, kwargs)


def keep_to_cores(number: int) -> int:
    """Keep this process, and those that it starts, to some cores; return how many it has."""
    cores = sorted(os.sched_getaffinity(0))[:number]
    os.sched_setaffinity(0, cores)
    return len(cores)


def resident_mb() -> float:
    """Memory of this process without shared libraries and shared memory."""
    return _status_kib("RssAnon") / 1024


def cpu_seconds() -> float:
    """CPU seconds of this process and of its descendants that still run."""
    ticks = os.sysconf("SC_CLK_TCK")
    family = [os.getpid(), *descendants()]
    return sum(sum(map(int, stat[11:13])) / ticks for one in family if (stat := _stat(one)))


def descendants() -> list[int]:
    """Ids of the processes that this one started, directly or not, and that still run."""
    numbers = [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]
    parents = {one: int(stat[1]) for one in numbers if (stat := _stat(one))}
    family = {os.getpid()}
    while children := {one for one, parent in parents.items() if parent in family} - family:
        family |= children
    return sorted(family - {os.getpid()})


def memory_mb(process: int) -> dict[str, float]:
    """Resident memory: ``rss`` counts pages that processes share in each of them, ``pss`` a part of
    them in each, so that it adds up, and ``uss`` only pages that are not shared."""
    kib: Counter[str] = Counter()
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        kib[_KINDS.get(name, "")] += int(rest.split()[0])
    return {kind: kib[kind] / 1024 for kind in ("rss", "pss", "uss")}


_KINDS = {"Rss": "rss", "Pss": "pss", "Private_Clean": "uss", "Private_Dirty": "uss"}


def _stat(process: int) -> list[str] | None:
    """Fields of a process from its state on; None if it has ended."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()


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
    # Not ru_maxrss, which a child inherits from the process that started it.
    return _status_kib("VmHWM") * 1024 / 1e9


def _status_kib(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])
