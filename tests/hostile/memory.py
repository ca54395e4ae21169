"""Peak memory of processes, as Linux counts it."""

import contextlib
import os
import re
import threading
from pathlib import Path

from tests.end_to_end.processes import command_of, descendants_of

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


def _kind(command: str) -> str | None:
    """Return what a process does in a job, by its command line."""
    if DECODER in command:
        return "decoding child"
    if "tokpipe.run" in command:
        return "driver"
    found = re.match(r"ray::(\w*Actor)", command)
    return found[1] if found else None


class PeakWatch:
    """Watches the descendants of this process, and records the peak of each kind.

    It may miss a process that ends within one interval, but not actors and drivers.
    """

    def __init__(self, every_s: float = 0.5) -> None:
        self.peaks: dict[str, int] = {}
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self._every_s):
            for pid in descendants_of(os.getpid()):
                if kind := _kind(command_of(pid)):
                    self.peaks[kind] = max(self.peaks.get(kind, 0), peak_bytes(pid))
