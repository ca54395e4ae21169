"""Scratch folders that do not pile up, even if their owners are killed."""

import os
import re
import shutil
import tempfile
from pathlib import Path

from tokpipe.storage.fetch import node_trouble

_NAME = re.compile(r"tokpipe-\w+-(\d+)-\w+")


def make_scratch(purpose: str) -> Path:
    """Return a new empty folder for this process below ``TMPDIR``.

    A killed worker cannot clean up, so this removes the folders of processes that have died.

    Raises:
        NodeTrouble: the disk is full or fails.
    """
    root = Path(tempfile.gettempdir())
    for old in root.glob("tokpipe-*-*-*"):
        match = _NAME.fullmatch(old.name)
        if match and not _is_running(int(match.group(1))):
            shutil.rmtree(old, ignore_errors=True)
    with node_trouble(root):
        return Path(tempfile.mkdtemp(prefix=f"tokpipe-{purpose}-{os.getpid()}-", dir=root))


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
