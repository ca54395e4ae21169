"""Fast pickling for Ray, whose pickler visits every object in Python."""

import pickle
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Packed(Generic[T]):
    """Carries a value across Ray: the receiver gets the value itself.

    The value is pickled in C. Ray sees some bytes and the buffers of arrays, which are not copied.
    """

    def __init__(self, value: T) -> None:
        self.value = value

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, tuple[Any, ...]]:
        buffers: list[pickle.PickleBuffer] = []
        inside = pickle.dumps(self.value, protocol=5, buffer_callback=buffers.append)
        return _unpack, (inside, *buffers)


def _unpack(inside: bytes, *buffers: Any) -> Any:
    return pickle.loads(inside, buffers=buffers)
