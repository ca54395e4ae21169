"""Copies of sources that a process holds open."""

import tempfile
from pathlib import Path


def open_copies(pid: int | str = "self") -> list[str]:
    """Return the files below TMPDIR that a process has open and that have no name any more."""
    found = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(fd.readlink())
        except FileNotFoundError:  # closed meanwhile, such as that of this listing
            continue
        if target.startswith(tempfile.gettempdir()) and target.endswith(" (deleted)"):
            found.append(target)
    return found
