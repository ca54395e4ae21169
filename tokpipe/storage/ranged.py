"""A stored object as a read-only file that fetches byte ranges."""

from __future__ import annotations

import errno
import functools
import io
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tokpipe.config.job import StoreOptions
from tokpipe.storage.client import client_of

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


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


def open_ranged(uri: str, options: StoreOptions, buffer_bytes: int) -> io.BufferedReader:
    """Open an object for reading.

    Raises:
        NotFound, AccessDenied, StorageError: from the store, now or during a later read.
    """
    client = client_of(uri, options)
    if not client.is_local:
        info = client.info(uri)
        if info.size is not None and info.takes_ranges:
            file = RangedFile(info.size, functools.partial(client.read_range, uri))
            return io.BufferedReader(file, buffer_bytes)
        # Seeking needs ranges; without them the whole object is held in memory.
        return io.BufferedReader(io.BytesIO(client.read(uri)), buffer_bytes)

    def attempt(_: float) -> io.BufferedReader:
        path = Path(client.path_of(uri))
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its writer
            raise FileNotFoundError(errno.ENOENT, "is not a regular file", str(path))
        return io.BufferedReader(path.open("rb", 0), buffer_bytes)

    return client.run("opening it", uri, attempt)
