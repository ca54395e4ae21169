"""What tokpipe asks of a store: whole immutable objects under one prefix.

Every output goes through this interface, so one contract suite covers memory, disk and S3.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object as a listing shows it."""

    key: str
    size_bytes: int
    modified_s: float
    """When it was last written, in seconds since 1970 by the clock of the store."""


class Store(Protocol):
    """Objects below one URI prefix. Keys are relative, with ``/`` between their parts.

    Each call either takes effect whole or not at all, and retries transient trouble by itself
    until the store's deadline. Errors: ``NotFound``, ``AccessDenied`` at once, else
    ``StorageError`` when the deadline has passed.
    """

    @property
    def uri(self) -> str:
        """The prefix, without a trailing slash."""

    def uri_of(self, key: str) -> str:
        """Full URI of one object, for messages and for other readers."""

    def get(self, key: str) -> bytes:
        """Return an object whole."""

    def get_range(self, key: str, start: int, end: int) -> bytes:
        """Return bytes ``start`` to ``end`` (exclusive, clipped to the object's size)."""

    def put(self, key: str, data: bytes) -> None:
        """Write an object in one call, over any older one. Readers see the old or the new."""

    def create(self, key: str, data: bytes) -> bool:
        """Write an object only if there is none; True if the object is now ours.

        A refused create may be the echo of an own earlier attempt whose answer was lost: the
        object is read back, and equal bytes count as ours. So ``data`` must be unlike any
        other writer's (put an attempt id in).
        """

    def size(self, key: str) -> int | None:
        """Size in bytes, or None if there is no such object."""

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Yield what is below a prefix, in any order. For audits; no resume needs it."""

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""
