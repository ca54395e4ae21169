"""A stored object as a read-only file that fetches byte ranges, all of one version.

Without that check, an object that is replaced between two ranges would be read as half of each
version, and one that is cut short would look complete.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from tokpipe.config.job import StoreOptions
from tokpipe.errors import Changed, NotFound
from tokpipe.storage.client import BadRange, Client, NoRanges, ObjectInfo, client_of
from tokpipe.telemetry.redact import redact

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

PIECE_BYTES = 16 * 2**20
"""Bytes that are read, and held in memory, at a time."""


class RangedFile(io.RawIOBase):
    """A seekable file that fetches one range per read.

    Wrap it in ``io.BufferedReader`` for small reads. fsspec's own remote files read 50 MB ahead
    and do not retry.
    """

    def __init__(self, size: int, read_range: Callable[[int, int], bytes]) -> None:
        """``read_range(start, end)`` returns the bytes from start to end, both within ``size``."""
        super().__init__()
        self.size = size
        self._read_range = read_range
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}
        self._position = max(0, start[whence] + offset)
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        end = min(self._position + len(view), self.size)
        if self._position >= end:
            return 0
        data = self._read_range(self._position, end)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)


@dataclass
class Pin:
    """The version that reads of one object must agree on: that of the first answer.

    Share one between all passes over an object.
    """

    info: ObjectInfo | None = None
    version: Any = None
    has_one_range: bool = False
    """Only one range is read, so it is of one version even if its server names none."""

    def hold(self, uri: str, found: Any) -> None:
        if self.version is None:
            self.version = found
        elif self.version != found:
            raise _changed(uri)


class _LocalFile(RangedFile):
    """A file on local disk. It stays the same if its name is given to another file meanwhile."""

    def __init__(self, file: BinaryIO, client: Client, uri: str, pin: Pin) -> None:
        self._file, self._client, self._uri, self._pin = file, client, uri, pin
        super().__init__(self._checked_size(), self._read)

    def close(self) -> None:
        self._file.close()
        super().close()

    def _read(self, start: int, end: int) -> bytes:
        doing = f"reading bytes {start} to {end}"
        place = self._file.fileno(), end - start, start
        data = self._client.run(doing, self._uri, lambda _: os.pread(*place))
        if self._checked_size() < end or len(data) < end - start:
            raise _changed(self._uri)
        return data

    def _checked_size(self) -> int:
        status = os.fstat(self._file.fileno())
        self._pin.hold(self._uri, (status.st_size, status.st_mtime_ns, status.st_ino))
        return status.st_size


class _RemoteFile(RangedFile):
    """An object of a store, or a copy of it on local disk if its server does not serve ranges."""

    def __init__(self, client: Client, uri: str, pin: Pin) -> None:
        self._client, self._uri, self._pin = client, uri, pin
        self._copy: BinaryIO | None = None
        info = pin.info = pin.info or client.info(uri)
        if client.can_list:  # web servers may name another version in answers without content
            pin.hold(uri, info.version)
        is_copied = info.size is None or not info.takes_ranges
        super().__init__(self._make_copy() if is_copied else info.size or 0, self._read)

    def close(self) -> None:
        if self._copy is not None:
            self._copy.close()
        super().close()

    def _read(self, start: int, end: int) -> bytes:
        data = b""
        try:
            data = self._fetch(start, end) if self._copy is None else data
        except NoRanges as error:
            if self._make_copy() != self.size:
                raise _changed(self._uri) from error
        except (NotFound, BadRange) as error:
            raise _changed(self._uri) from error
        if self._copy is not None:
            self._copy.seek(start)
            data = self._copy.read(end - start)
        if len(data) < end - start:
            raise _changed(self._uri)
        return data

    def _fetch(self, start: int, end: int) -> bytes:
        data, size, version = self._client.read_version(self._uri, start, end)
        if size is None:  # a store whose answers do not say
            info = self._client.info(self._uri)
            size, version = info.size, info.version
        if size != self.size:
            raise _changed(self._uri)
        if not version and not self._pin.has_one_range:
            raise NoRanges(self._uri)
        self._pin.hold(self._uri, version)
        return data

    def _make_copy(self) -> int:
        """Copy the whole object, whose only answer is of one version, and return its size."""
        self._copy = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 (closed in close())
        copy_whole(self._client, self._uri, self._copy)
        self._copy.seek(0)
        self._pin.hold(self._uri, hashlib.file_digest(self._copy, "sha256").digest())
        return self._copy.seek(0, io.SEEK_END)


def open_raw(uri: str, options: StoreOptions, pin: Pin | None = None) -> RangedFile:
    """Open an object for reads of exactly the ranges that are asked for.

    Raises:
        NotFound, AccessDenied, StorageError: from the store, now or during a later read.
        Changed: during a later read, if the object is not the one that was opened any more.
    """
    client, pin = client_of(uri, options), pin or Pin()
    if not client.is_local:
        return _RemoteFile(client, uri, pin)

    def attempt(_: float) -> BinaryIO:
        path = Path(client.path_of(uri))
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its writer
            raise FileNotFoundError(errno.ENOENT, "is not a regular file", str(path))
        return path.open("rb", 0)

    return _LocalFile(client.run("opening it", uri, attempt), client, uri, pin)


def open_ranged(
    uri: str, options: StoreOptions, buffer_bytes: int, pin: Pin | None = None
) -> io.BufferedReader:
    """Open an object for reading, ``buffer_bytes`` at a time. Raises the errors of ``open_raw``."""
    return io.BufferedReader(open_raw(uri, options, pin), buffer_bytes)


def copy_whole(
    client: Client, uri: str, file: BinaryIO, write: Callable[[bytes], Any] | None = None
) -> None:
    """Copy an object from a web server in one request; after an error, start again.

    ``write`` writes to ``file``, with what the caller wants to check.
    """

    def attempt(_: float) -> None:
        file.seek(0)
        file.truncate()
        with client.fs.open(client.path_of(uri), "rb", block_size=0) as stream:
            while piece := stream.read(PIECE_BYTES):
                (write or file.write)(piece)

    client.run("reading it", uri, attempt)


def _changed(uri: str) -> Changed:
    return Changed(
        f"{redact(uri)}: was replaced, cut short or deleted while it was read, so what was read "
        "would mix two versions. Wait until whatever writes it has finished, then run again"
    )
