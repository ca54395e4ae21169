"""The interface to a store: whole, immutable objects below one prefix."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object in a listing."""

    key: str
    size_bytes: int
    modified_s: float  # Time of the last write, in seconds since 1970 by the store's clock
    version: int | None = None  # Identifies the content, as ``ObjectInfo.source_version`` does


class Store(Protocol):
    """Objects below one URI prefix. Keys are relative, with ``/`` between their parts.

    Each call happens completely or not at all. It retries transient errors until the store's
    deadline, then raises ``StorageError``. ``NotFound`` and ``AccessDenied`` are raised at once.
    """

    @property
    def uri(self) -> str:
        """The prefix, without a trailing slash."""

    def uri_of(self, key: str) -> str:
        """Return the full URI of an object."""

    def get(self, key: str) -> bytes:
        """Return a whole object."""

    def get_range(self, key: str, start: int, end: int) -> bytes:
        """Return bytes ``start`` to ``end`` (exclusive), fewer where the object ends earlier."""

    def put(self, key: str, data: bytes) -> None:
        """Write an object, replacing any older one. Readers see the old object or the new one."""

    def create(self, key: str, data: bytes) -> bool:
        """Write an object only if the key is free. Return True if the object is now ours.

        If an earlier attempt succeeded but its answer was lost, the retry finds the key taken.
        The object is then read back, and equal bytes count as ours. ``data`` must therefore
        differ from what any other writer would write; include an attempt id.
        """

    def size(self, key: str) -> int | None:
        """Return the size in bytes, or None if there is no such object."""

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Yield the objects whose keys start with ``prefix``, in any order."""

    def delete(self, key: str) -> None:
        """Delete an object. Deleting one that does not exist is not an error."""
