"""The decoders, behind one small interface. Imported in the decoding child only.

All of them agree on which frame is which, because each is held to the same timeline.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tokpipe.media.framing import Framing
from tokpipe.media.timeline import Timeline


class Backend(Protocol):
    """Decodes chosen frames of one file: a module or an object with this one function."""

    def decode(
        self,
        path: Path,
        timeline: Timeline,
        wanted: NDArray[np.int64],
        framing: Framing,
        out: NDArray[np.uint8],
    ) -> None:
        """Write frame ``wanted[i]`` of the timeline into ``out[i]``, resized and placed.

        Args:
            wanted: (T,) never falling; a frame may be wanted several times.
            out: (T, H, W, 3), zeros if ``framing`` leaves margins; else it holds anything.

        Raises:
            SourceError: the frames cannot be had, or are not certain to be the right ones. What
                is in ``out`` then means nothing.
        """


_MODULES = {
    "decord": "tokpipe.media.backends.decord",
    "pyav": "tokpipe.media.backends.pyav",
    "torchcodec": "tokpipe.media.backends.torchcodec",
}


# decord decodes and converts every frame of a file. Measured on 720p, it is as fast as PyAV when
# all of them are wanted, and 0.74 times as fast when a third are.
_MIN_SHARES = {"decord": 0.5}


class BackendUnavailable(Exception):
    """A backend, or a library that it needs, does not load on this machine."""


def load_backend(name: str) -> Backend:
    """Import a backend by its short name, or by the import path of a module of one's own.

    Raises:
        BackendUnavailable: it does not load.
    """
    try:
        module = import_module(_MODULES.get(name, name))
    except (ImportError, OSError, RuntimeError) as error:  # shared libraries raise all of them
        raise BackendUnavailable(f"{name} does not load ({error})") from error
    backend: Backend = module
    return backend


def pays(name: str, share: float) -> bool:
    """Whether a backend is worth trying before another, for a clip that needs this share of a
    file's frames. One that the job names is used for every clip."""
    return share >= _MIN_SHARES.get(name, 0.0)
