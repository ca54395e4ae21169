"""The peak of resident memory of processes, as Linux measures it."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

DECODER = "tokpipe.media.child"
"""Part of the command line of a decoding child."""


def peak_bytes(pid: int | str = "self") -> int:
    """Peak of a process since it was last reset; 0 if the process is gone."""
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text()
        if found := re.search(r"VmHWM:\s+(\d+) kB", status):
            return int(found[1]) * 1024
    return 0


def reset_peak(pid: int | str = "self") -> None:
    """Reset the peak of a process to its current memory."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def decoding_children() -> list[int]:
    """Process ids of this process's decoding children."""
    return [pid for pid in _children(os.getpid()) if DECODER in _command(pid)]


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def _descendants(pid: int) -> Iterator[int]:
    for child in _children(pid):
        yield child
        yield from _descendants(child)


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        )
    return ""


def _kind(command: str) -> str | None:
    """Return what a process does in a job, by its command line."""
    if DECODER in command:
        return "decoding child"
    if "tokpipe.run" in command:
        return "driver"
    if found := re.match(r"ray::(\w*Actor)", command):
        return found[1]
    return None


class PeakWatch:
    """Watches the descendants of this process, and records the peak of each kind.

    It may miss a process that ends within one interval, but not actors and drivers.
    """

    def __init__(self, every_s: float = 0.5) -> None:
        self.peaks: dict[str, int] = {}
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self._every_s):
            for pid in _descendants(os.getpid()):
                if kind := _kind(_command(pid)):
                    self.peaks[kind] = max(self.peaks.get(kind, 0), peak_bytes(pid))
