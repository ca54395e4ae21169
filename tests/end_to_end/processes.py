"""Finding the processes of a test's own cluster, to kill them."""

from __future__ import annotations

import os
from pathlib import Path


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _descends_from(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        pid = _parent(pid)
    return False


def _all_pids() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]


def descendants_of(ancestor: int) -> list[int]:
    """Processes below ``ancestor``, without itself."""
    return [pid for pid in _all_pids() if pid != ancestor and _descends_from(pid, ancestor)]


def pids_of(words: str) -> list[int]:
    """Processes of this test whose command line holds ``words``.

    They descend from this process, as all of the test's cluster does.
    """
    found = []
    for pid in _all_pids():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if words in command and _descends_from(pid, os.getpid()):
            found.append(pid)
    return found
