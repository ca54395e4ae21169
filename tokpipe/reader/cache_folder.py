"""Files on a local disk that the processes of a node share, and one of them makes."""

import contextlib
import fcntl
import os
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TypeVar

from tokpipe.errors import ConfigError, StorageError
from tokpipe.formats.checks import damaged
from tokpipe.storage.local_files import TEMPORARY_FOLDER, remove_abandoned

T = TypeVar("T")


class CacheFolder:
    """Files in ``path``, named by what they were made from and never changed. See ``CodeCache``.

    ``on_removal`` is called when this object removed some, to make room for another.
    """

    def __init__(self, path: Path, max_bytes: int | None, on_removal: Callable[[], None]) -> None:
        self.path, self.max_bytes = path, max_bytes
        self._on_removal = on_removal
        self._temporary, self._locks = path / TEMPORARY_FOLDER, path / "locks"
        with self._disk_trouble():
            self._temporary.mkdir(parents=True, exist_ok=True)
            self._locks.mkdir(exist_ok=True)
        remove_abandoned(path)

    def get(
        self,
        uri: str,
        sha256: str,
        suffix: str,
        read: Callable[[Path], T],
        write: Callable[[IO[bytes]], object],
        min_bytes: int = 0,
    ) -> T:
        """Return what ``read`` makes of a file, which is first written unless it is there.

        Args:
            uri: the object that the file is made from, for messages.
            sha256: of that object; names the file, with the ``suffix`` for what was made from it.
            read: raises FileNotFoundError, or ValueError for a file that is not whole.
            min_bytes: the file takes at least this much, so that room is made before it is written.
        """
        if not re.fullmatch("[0-9a-f]{64}", sha256):  # it names files here
            raise damaged(uri, f"its SHA-256 in the manifest is {sha256!r}")
        path = self.path / f"{sha256}{suffix}"
        with contextlib.suppress(FileNotFoundError, ValueError):
            return _opened(path, read)
        with self._disk_trouble(), self._locked(sha256):
            with contextlib.suppress(FileNotFoundError, ValueError):
                return _opened(path, read)  # another process made it
            self._make_room(uri, min_bytes)
            temporary = self._temporary / uuid.uuid4().hex
            try:
                with temporary.open("xb") as file:
                    write(file)
                    file.flush()
                    os.fsync(file.fileno())  # a power cut could keep the name but lose the bytes
                self._make_room(uri, temporary.stat().st_size)
                value = _opened(temporary, read)  # before another process can remove it
                os.replace(temporary, path)  # noqa: PTH105
            finally:
                temporary.unlink(missing_ok=True)
            return value

    @contextlib.contextmanager
    def _locked(self, sha256: str) -> Iterator[None]:
        with (self._locks / sha256[:2]).open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released when the process ends
            try:
                yield
            finally:  # Closing is not enough: a process forked meanwhile has the file open
                fcntl.flock(lock, fcntl.LOCK_UN)

    def _make_room(self, uri: str, num_bytes: int) -> None:
        if self.max_bytes is None:
            return
        if num_bytes > self.max_bytes:
            needs = f"what it keeps of {uri} takes {num_bytes} bytes, more than {self.max_bytes}"
            raise ConfigError(f"{self.path}: {needs}. Raise max_bytes")
        found = []
        for path in self.path.glob(f"{'[0-9a-f]' * 64}*"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        room = self.max_bytes - num_bytes - sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if room >= 0:
                return
            path.unlink(missing_ok=True)
            room += size
            self._on_removal()

    @contextlib.contextmanager
    def _disk_trouble(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            found = f"{self.path}: cannot write the code cache ({error.strerror})"
            do = "Free disk space, set max_bytes, or choose another folder"
            raise StorageError(f"{found}. {do}") from error


def _opened(path: Path, read: Callable[[Path], T]) -> T:
    value = read(path)
    with contextlib.suppress(OSError):  # removed meanwhile, or another user's
        os.utime(path)  # the least recently used are removed first
    return value
