"""Finding the processes of a test's own cluster: to kill them, or to measure their memory."""

import contextlib
import os
from pathlib import Path


def descendants_of(pid: int) -> list[int]:
    """Processes below ``pid``, without itself."""
    found: list[int] = []
    with contextlib.suppress(OSError):  # a process or a thread that has just ended
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                for child in map(int, (thread / "children").read_text().split()):
                    found += [child, *descendants_of(child)]
    return found


def command_of(pid: int) -> str:
    """The command line of a process; empty if it is gone."""
    with contextlib.suppress(OSError):
        data = Path(f"/proc/{pid}/cmdline").read_bytes()
        return data.replace(b"\0", b" ").decode(errors="replace")
    return ""


def pids_of(words: str) -> list[int]:
    """Descendants of this process, as a test's own cluster is, with ``words`` in their command."""
    return [pid for pid in descendants_of(os.getpid()) if words in command_of(pid)]
