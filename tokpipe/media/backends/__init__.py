"""The decoders. Imported in the decoding child only.

Each is a module: ``versions()`` lists what it loaded, and ``decode(task, out)`` writes frame
``task.wanted[i]`` of the timeline into ``out[i]`` of (T, H, W, 3), resized and placed. It raises
``SourceError`` if frames cannot be decoded or may be wrong, after the first ``task.num_written``.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokpipe.errors import ConfigError
from tokpipe.media.colour import Tags
from tokpipe.media.framing import Framing
from tokpipe.media.timeline import Timeline


@dataclass(slots=True)
class Task:
    """The frames to decode from one file, and what became of them."""

    path: Path  # May be below ``/proc``: then it was fetched, to a file without a name on disk
    timeline: Timeline
    wanted: NDArray[np.int64]  # (T,) positions in the timeline, never decreasing, maybe repeated
    framing: Framing
    painted: set[Tags] = field(default_factory=set)  # Of the frames in ``out``; decides on marks
    file_name: str = ""  # For ``open_video``
    marks: list[str] = field(default_factory=list)  # What else users of the clip should know
    num_written: int = 0  # First frames in ``out`` that are right and whole, whatever was raised


def load_backend(name: str) -> Any:
    """Import a backend by its short name or import path; ConfigError if it does not load."""
    try:
        return import_module(name if "." in name else f"{__name__}.{name}")
    except (ImportError, OSError, RuntimeError) as error:  # shared libraries raise all of them
        found = f"decode.backend: {name} does not load ({error})"
        do = "install it and the libraries that it needs on every node, or name another backend"
        if name == "pillow":
            found = f"pictures need Pillow, which does not load ({error})"
            do = "pip install 'tokpipe[images]' on every node, or set media: video for all sources"
        raise ConfigError(f"{found}; {do}") from error


def versions_of(names: Iterable[str]) -> dict[str, str]:
    """Load backends; return versions of their modules and FFmpeg. ConfigError if one does not."""
    found: dict[str, str] = {}
    for backend in map(load_backend, names):
        found |= getattr(backend, "versions", dict)()
    return found
