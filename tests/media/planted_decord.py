"""decord with a reader whose fault is the name of its file; loaded in the decoding child.

decord's other ways of reading really have these faults.
"""

from pathlib import Path
from typing import Any

import decord
import numpy as np
from numpy.typing import NDArray

from tokpipe.media.backends import Task
from tokpipe.media.backends import decord as backend

AT = 5
_RealReader = decord.VideoReader


class _Reader:
    def __init__(self, path: str, **options: Any) -> None:
        self._fault = Path(path).stem
        self._reader = _RealReader(path, **options)
        self._index = 0
        self._last: Any = None

    def __len__(self) -> int:
        return len(self._reader) - (self._fault == "counts-fewer")

    def get_frame_timestamp(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        times_s: NDArray[np.float32] = self._reader.get_frame_timestamp(indices)
        if self._fault == "wrong-time":
            times_s[AT] += 0.04
        return times_s

    def next(self) -> Any:
        self._index += 1
        if self._fault == "ends-early" and self._index > AT:
            raise StopIteration
        if self._fault == "drops" and self._index == AT:
            self._reader.next()
        if self._fault == "doubles" and self._index == AT:
            return self._last
        self._last = self._reader.next()
        return self._last


def decode(task: Task, out: NDArray[np.uint8]) -> None:
    decord.VideoReader = _Reader
    backend.decode(task, out)
