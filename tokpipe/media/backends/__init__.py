"""The decoders, behind one small interface. Imported in the decoding child only.

They agree on which frame is which, because each is checked against the same timeline.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tokpipe.errors import ConfigError
from tokpipe.media.framing import Framing
from tokpipe.media.timeline import Timeline


@dataclass(frozen=True, slots=True)
class Task:
    """The frames to decode from one file."""

    path: Path
    timeline: Timeline
    wanted: NDArray[np.int64]
    """(T,) positions in the timeline, never decreasing; a frame may be wanted several times."""
    framing: Framing


class Backend(Protocol):
    """A module that decodes selected frames of one file; it may also have ``versions``."""

    def decode(self, task: Task, out: NDArray[np.uint8]) -> None:
        """Write frame ``task.wanted[i]`` of the timeline into ``out[i]``, resized and placed.

        Args:
            out: (T, H, W, 3), zeros if the framing leaves margins and undefined otherwise.

        Raises:
            SourceError: the frames cannot be decoded, or may not be the right ones. ``out`` is
                then undefined.
        """


def load_backend(name: str) -> Backend:
    """Import a backend by its short name, or a module by its import path.

    Raises:
        ConfigError: it, or a library that it needs, does not load on this machine.
    """
    try:
        backend: Backend = import_module(name if "." in name else f"{__name__}.{name}")
    except (ImportError, OSError, RuntimeError) as error:  # shared libraries raise all of them
        raise ConfigError(
            f"decode.backend: {name} does not load ({error}); install it and the libraries that it "
            "needs on every node, or name another backend"
        ) from error
    return backend


def versions_of(names: Iterable[str]) -> dict[str, str]:
    """Load backends; return versions of their modules and FFmpeg. ConfigError if one does not."""
    found: dict[str, str] = {}
    for backend in map(load_backend, names):
        found |= getattr(backend, "versions", dict)()
    return found
