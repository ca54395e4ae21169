"""A stored object as a read-only file that fetches byte ranges."""

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tokpipe.config.job import StoreOptions
from tokpipe.storage.client import Client, ObjectInfo, client_of


class RangedFile(io.RawIOBase):
    """A seekable file that fetches one range per read, so small reads need a buffer. fsspec's own
    remote files read 50 MB ahead and do not retry."""

    def __init__(self, size: int, read_range: Callable[[int, int], bytes]) -> None:
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

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        end = min(self._position + len(view), self.size)
        if self._position >= end:
            return 0
        data = self._read_range(self._position, end)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)


@dataclass
class Pinned:
    """An object of which every pass reads the same version: that of the first."""

    uri: str
    options: StoreOptions
    _whole: bytes = field(default=b"", init=False, compare=False)

    @cached_property
    def info(self) -> ObjectInfo:
        return client_of(self.uri, self.options).info(self.uri)

    def open(self, buffer_bytes: int) -> io.BufferedReader:
        """Open it for reading. Later reads may raise ``Changed``."""
        client = client_of(self.uri, self.options)
        if self.info.size is not None and self.info.version:
            return io.BufferedReader(ranged_file(client, self.uri, self.info), buffer_bytes)
        # From a web server that names no versions, one answer is of one. Seeking needs ranges.
        self._whole = self._whole or client.read(self.uri)
        return io.BufferedReader(io.BytesIO(self._whole), buffer_bytes)


def ranged_file(client: Client, uri: str, info: ObjectInfo) -> RangedFile:
    """Return one version of an object as a file. Reading raises ``Changed`` if it is replaced."""
    # A size that is not known shows that the server sends everything anyway.
    whole = client.read(uri) if info.size is None else b""

    def read(start: int, end: int) -> bytes:
        nonlocal whole
        data = whole or client.read_version(uri, start, end, info)
        if len(data) > end - start:  # a web server ignored the range and sent everything
            whole, data = data, data[start:end]
        return data

    return RangedFile(len(whole) if info.size is None else info.size, read)
