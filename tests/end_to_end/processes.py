"""Finding the processes of a test's own cluster, to kill them."""

from __future__ import annotations

import os
from pathlib import Path


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _is_ours(pid: int) -> bool:
    """Whether a process descends from this one, as all of the test's cluster does."""
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = _parent(pid)
    return False


def pids_of(words: str) -> list[int]:
    """Processes of this test whose command line holds ``words``."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if words in command and _is_ours(int(folder.name)):
            found.append(int(folder.name))
    return found
