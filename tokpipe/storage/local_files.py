"""Writes whole files on local disk: they appear complete, and a create never overwrites."""

import contextlib
import errno
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from tokpipe.errors import StorageError

TEMPORARY_FOLDER = ".tokpipe-tmp"  # Below a store's root, so on the file system of its files
_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
_ABANDONED_AFTER_S = 24 * 3600.0


def write_file(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, whose folder exists; readers see the old file or the new one."""
    with _temporary(path.with_name(f".{uuid.uuid4().hex}.part"), data) as temporary:
        os.replace(temporary, path)  # noqa: PTH105
    _sync_folder(path.parent)


def put_file(root: Path, path: Path, data: bytes, *, exclusive: bool, private: bool) -> None:
    """Write ``data`` to ``path`` below ``root``; readers see the old file or the new one. Only its
    owner may read a ``private`` file, and list its folder, if this makes the folder."""
    _make_folder(root / TEMPORARY_FOLDER)
    with _temporary(root / TEMPORARY_FOLDER / uuid.uuid4().hex, data, private) as temporary:
        for folder in (path.parent.parent, path.parent) if private else (path.parent,):
            _make_folder(folder, 0o700 if private else 0o777)
        if not exclusive:
            os.replace(temporary, path)  # noqa: PTH105
        else:
            try:  # atomic, also on NFS; if killed, O_EXCL would leave part of a file
                os.link(temporary, path)
            except OSError as error:
                if error.errno not in _NO_HARD_LINKS:
                    raise
                found = "cannot be created exclusively, because this file system has no hard links"
                do = "Write to another disk, or to the bucket itself"
                raise StorageError(f"{path}: {found} ({error.strerror}). {do}") from error
    _sync_folder(path.parent)


def remove_abandoned(root: Path) -> None:
    """Remove temporary files that killed processes left more than a day ago."""
    oldest_s = time.time() - _ABANDONED_AFTER_S
    # Opening a store does this, and must not fail for readers who may not write to it.
    if (folder := root / TEMPORARY_FOLDER).is_symlink():  # in somebody else's output
        return
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # such as another process that cleans up too
                if entry.stat().st_mtime < oldest_s:
                    os.unlink(entry.path)  # noqa: PTH108


@contextlib.contextmanager
def _temporary(path: Path, data: bytes, private: bool = False) -> Iterator[Path]:
    """Write a file, and remove it at the end unless it was moved."""
    try:
        path.touch(0o600 if private else 0o666, exist_ok=False)
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield path
    finally:
        path.unlink(missing_ok=True)


def _make_folder(folder: Path, mode: int = 0o777) -> None:
    try:
        folder.mkdir(mode, parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        found = f"{folder}: cannot be created, because it or a folder above it is a file"
        raise StorageError(found) from error


def _sync_folder(folder: Path) -> None:
    # Otherwise a power cut may lose the file's name, although its bytes are safe.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
