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

_SHORT_NAMES = ("decord", "pyav")


@dataclass(frozen=True, slots=True)
class Task:
    """The frames to decode from one file."""

    path: Path
    timeline: Timeline
    wanted: NDArray[np.int64]
    """(T,) positions in the timeline, never decreasing; a frame may be wanted several times."""
    framing: Framing


class Backend(Protocol):
    """Decodes selected frames of one file: a module or an object with this one function.

    Those of this package also have ``versions``, of what they loaded, by name.
    """

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
    module = f"{__name__}.{name}" if name in _SHORT_NAMES else name
    try:
        backend: Backend = import_module(module)
    except (ImportError, OSError, RuntimeError) as error:  # shared libraries raise all of them
        raise ConfigError(
            f"decode.backend: {name} does not load ({error}); install it and the libraries that it "
            "needs on every node, or name another backend"
        ) from error
    return backend


def versions_of(names: Iterable[str]) -> dict[str, str]:
    """Load backends; return the versions of their modules and of the FFmpeg behind each.

    Raises:
        ConfigError: one does not load.
    """
    found: dict[str, str] = {}
    for backend in map(load_backend, names):
        found |= getattr(backend, "versions", dict)()
    return found
