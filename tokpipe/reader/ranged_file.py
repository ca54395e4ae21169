"""A stored object as a read-only file, fetched by ranges as it is read."""

from __future__ import annotations

import io

from typing_extensions import Buffer

from tokpipe.storage.store import Store


class RangedFile(io.RawIOBase):
    """Lets pyarrow read a row group of a remote shard without fetching the rest."""

    def __init__(self, store: Store, key: str, size_bytes: int) -> None:
        super().__init__()
        self._store = store
        self._key = key
        self._size_bytes = size_bytes
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size_bytes}
        self._position = max(0, start[whence] + offset)
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        end = self._size_bytes if size is None or size < 0 else self._position + size
        end = min(end, self._size_bytes)
        if end <= self._position:
            return b""
        data = self._store.get_range(self._key, self._position, end)
        self._position += len(data)
        return data

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)
