"""Runs one function in a process of its own: fresh memory, a Ray cluster of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def in_fresh_process(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Return what ``function`` returns there; arguments and result are pickled."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def keep_to_cores(number: int) -> int:
    """Keep this process, and those that it starts, to so many cores; returns how many it has."""
    cores = sorted(os.sched_getaffinity(0))[:number]
    os.sched_setaffinity(0, cores)
    return len(cores)


def resident_mb() -> float:
    """Memory of this process, shared libraries and shared memory left out."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) / 1024


def cpu_seconds() -> float:
    """CPU seconds of this process and of all that descend from it and still run."""
    parents: dict[int, int] = {}
    seconds: dict[int, float] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            status = (folder / "stat").read_text()
        except OSError:
            continue  # it has just ended
        fields = status[status.rindex(")") + 2 :].split()
        parents[int(folder.name)] = int(fields[1])
        seconds[int(folder.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    family = {os.getpid()}
    while children := {one for one, parent in parents.items() if parent in family} - family:
        family |= children
    return sum(seconds.get(one, 0.0) for one in family)
