"""Files that are whole or not there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path``: whoever looks sees the old file or the new one, both whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        part = Path(file.name)
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            part.chmod(0o644)  # temporary files are for their owner alone
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
