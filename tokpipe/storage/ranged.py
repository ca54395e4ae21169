"""A file-like view of one object anywhere, read by ranges that are retried one by one."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path

from tokpipe.config.job import StoreOptions
from tokpipe.storage.client import client_of


class RangedFile(io.RawIOBase):
    """Reads an object through its store's client, a range per call.

    Wrap it in ``io.BufferedReader`` for small reads. fsspec's own remote files read ahead by
    50 MB and leave retrying to the caller.
    """

    def __init__(self, uri: str, options: StoreOptions) -> None:
        self._uri = uri
        self._client = client_of(uri, options)
        info = self._client.info(uri)
        if info.size is None or not info.takes_ranges:
            # Without ranges there is no seeking, so the object has to be held.
            self._whole: bytes | None = self._client.read(uri)
            self.size = len(self._whole)
        else:
            self._whole = None
            self.size = info.size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError(f"{self._uri}: cannot seek to {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        end = min(self._position + len(buffer), self.size)
        if self._position >= end:
            return 0
        if self._whole is None:
            data = self._client.read_range(self._uri, self._position, end)
        else:
            data = self._whole[self._position : end]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def open_ranged(uri: str, options: StoreOptions, buffer_bytes: int) -> io.BufferedReader:
    """Open any object for reading; a local file is opened as it is.

    Raises:
        NotFound, AccessDenied, StorageError: from the store, here or at a later read.
    """
    client = client_of(uri, options)
    if not client.is_local:
        return io.BufferedReader(RangedFile(uri, options), buffer_bytes)

    def attempt(_: float) -> io.BufferedReader:
        path = Path(client.path_of(uri))
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its writer
            raise FileNotFoundError(errno.ENOENT, "is not a regular file", str(path))
        return io.BufferedReader(path.open("rb", 0), buffer_bytes)

    file: io.BufferedReader = client.run("opening it", uri, attempt)
    return file
