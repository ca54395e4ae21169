"""A stored object as a read-only file, fetched by ranges that are retried one by one."""

from __future__ import annotations

import errno
import functools
import io
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tokpipe.config.job import StoreOptions
from tokpipe.storage.client import Client, client_of

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class RangedFile(io.RawIOBase):
    """Lets a reader seek in a stored object and fetch only what it reads, a range per call.

    Wrap it in ``io.BufferedReader`` for small reads. fsspec's own remote files read ahead by
    50 MB and leave retrying to the caller.
    """

    def __init__(self, size: int, read_range: Callable[[int, int], bytes]) -> None:
        """``read_range(start, end)`` gives the bytes from start to end, both within ``size``."""
        super().__init__()
        self.size = size
        self._read_range = read_range
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

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


def _remote_file(uri: str, client: Client) -> RangedFile:
    info = client.info(uri)
    if info.size is not None and info.takes_ranges:
        return RangedFile(info.size, functools.partial(client.read_range, uri))
    # Without ranges there is no seeking, so the object has to be held.
    whole = client.read(uri)
    return RangedFile(len(whole), lambda start, end: whole[start:end])


def open_ranged(uri: str, options: StoreOptions, buffer_bytes: int) -> io.BufferedReader:
    """Open any object for reading; a local file is opened as it is.

    Raises:
        NotFound, AccessDenied, StorageError: from the store, here or at a later read.
    """
    client = client_of(uri, options)
    if not client.is_local:
        return io.BufferedReader(_remote_file(uri, client), buffer_bytes)

    def attempt(_: float) -> io.BufferedReader:
        path = Path(client.path_of(uri))
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its writer
            raise FileNotFoundError(errno.ENOENT, "is not a regular file", str(path))
        return io.BufferedReader(path.open("rb", 0), buffer_bytes)

    file: io.BufferedReader = client.run("opening it", uri, attempt)
    return file
