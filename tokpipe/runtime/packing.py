"""Values made ready for Ray, whose own pickler looks at every object inside in Python."""

from __future__ import annotations

import pickle
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Packed(Generic[T]):
    """Carries a value across Ray: who gets it finds the value itself, not this.

    The inside is pickled in C, and what is left for Ray is some bytes and the buffers of arrays,
    which stay where they are in the object store.
    """

    def __init__(self, value: T) -> None:
        self.value = value

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, tuple[Any, ...]]:
        buffers: list[pickle.PickleBuffer] = []
        inside = pickle.dumps(self.value, protocol=5, buffer_callback=buffers.append)
        return _unpack, (inside, *buffers)


def _unpack(inside: bytes, *buffers: Any) -> Any:
    return pickle.loads(inside, buffers=buffers)
