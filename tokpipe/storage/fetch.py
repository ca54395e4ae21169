"""Brings one video to local disk, where decoders want it."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tokpipe.config.job import StoreOptions
from tokpipe.errors import (
    AccessDenied,
    ConfigError,
    NodeTrouble,
    NotFound,
    SourceError,
    StorageError,
)
from tokpipe.storage.client import Client, ObjectInfo, client_of, split_protocol
from tokpipe.types import ArchiveMember

_NODE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)

PIECE_BYTES = 16 * 2**20
"""Read, and held in memory, at a time."""

_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}$")


def fetch_to_file(
    uri: str,
    member: ArchiveMember | None,
    folder: Path,
    *,
    options: StoreOptions,
    max_bytes: int,
) -> Path:
    """Return a local file that holds the video ``uri``.

    A local video is used where it lies. Anything else, an archive's member included, becomes a
    new file in ``folder``, with the video's suffix; it is the caller's to remove. On an error
    none stays behind.

    Raises:
        SourceError: for this video alone, with the reasons ``missing``, ``not_a_file``,
            ``access_denied``, ``too_large``, ``truncated`` (a member beyond its archive's end),
            ``changed`` (the object was replaced while being read), ``unreachable`` (an HTTP
            server) or ``bad_uri``.
        StorageError: the store kept failing, which is nobody's fault but its own.
        NodeTrouble: ``folder`` is on a disk that is full or fails.
    """
    if member is None and split_protocol(uri)[0] == "file":
        return _local_file(Path(split_protocol(uri)[1]), max_bytes)
    source = uri if member is None else member.archive_uri
    try:
        client = client_of(source, options)
        return _copy(client, source, member, folder, _suffix(uri), max_bytes)
    except ConfigError as error:
        raise SourceError("bad_uri", str(error)) from error
    except NotFound as error:
        raise SourceError("missing", str(error)) from error
    except AccessDenied as error:
        raise SourceError("access_denied", str(error)) from error
    except StorageError as error:
        if split_protocol(source)[0] not in ("http", "https"):
            raise
        # A list of web addresses spans many servers; one that is gone is no reason to stop.
        raise SourceError("unreachable", str(error)) from error


def _local_file(path: Path, max_bytes: int) -> Path:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SourceError("missing", f"{path}: does not exist ({error.strerror}).") from error
    except PermissionError as error:
        raise SourceError("access_denied", f"{path}: may not be read.") from error
    except (OSError, ValueError) as error:  # a link to itself, a NUL in the name
        raise SourceError("bad_uri", f"{path}: cannot be opened ({error}).") from error
    if not stat.S_ISREG(status.st_mode):
        kind = stat.filemode(status.st_mode)[0]
        what = {"d": "folder", "p": "pipe", "s": "socket"}.get(kind, "device")
        raise SourceError(
            "not_a_file",
            f"{path}: is a {what}, not a regular file. Reading it could wait for ever.",
        )
    if not os.access(path, os.R_OK):
        raise SourceError("access_denied", f"{path}: may not be read.")
    _check_size(str(path), status.st_size, max_bytes)
    return path


def _copy(
    client: Client,
    source: str,
    member: ArchiveMember | None,
    folder: Path,
    suffix: str,
    max_bytes: int,
) -> Path:
    if client.is_local:
        _local_file(Path(client.path_of(source)), max_bytes=2**63)  # an archive may be a pipe too
    info = client.info(source)
    if member is not None:
        start, size = member.offset, member.size
        if info.size is not None and start + size > info.size:
            raise SourceError(
                "truncated",
                f"{source}: ends at byte {info.size}, but its member goes to byte "
                f"{start + size}. The archive was cut or replaced after it was indexed.",
            )
    else:
        start, size = 0, info.size or 0
    _check_size(source, size, max_bytes)

    with node_trouble(folder):
        descriptor, name = tempfile.mkstemp(suffix=suffix, dir=folder)
    path = Path(name)
    try:
        with node_trouble(folder), os.fdopen(descriptor, "wb") as file:
            if member is None and (info.size is None or not info.takes_ranges):
                _copy_stream(client, source, file, folder, max_bytes)
            else:
                for at in range(start, start + size, PIECE_BYTES):
                    piece_end = min(at + PIECE_BYTES, start + size)
                    file.write(client.read_exactly(source, at, piece_end))
                if size > PIECE_BYTES:
                    _check_unchanged(source, info, client.info(source))
    except BaseException:
        path.unlink()
        raise
    return path


@contextlib.contextmanager
def node_trouble(folder: Path) -> Iterator[None]:
    """Tell a scratch disk that is full or fails from everything else that may go wrong.

    Raises:
        NodeTrouble: in place of the file system's error.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NODE_ERRNOS:
            raise
        raise NodeTrouble(
            f"{folder} on {socket.gethostname()}: the local disk takes no more ({error.strerror}). "
            "Videos cannot be fetched there; other nodes go on. Free it, or set TMPDIR to a "
            "larger disk on every node."
        ) from error


def _copy_stream(client: Client, source: str, file: BinaryIO, folder: Path, max_bytes: int) -> None:
    """Copy from an HTTP server without ranges: in order, and any failure starts again."""

    def attempt(_: float) -> None:
        file.seek(0)
        file.truncate()
        with client.fs.open(client.path_of(source), "rb", block_size=0) as stream:
            while piece := stream.read(PIECE_BYTES):
                _check_size(source, file.tell() + len(piece), max_bytes)
                with node_trouble(folder):  # or it would be taken for the store's
                    file.write(piece)

    client.run("reading it", source, attempt)


def _check_size(source: str, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise SourceError(
            "too_large",
            f"{source}: has {size} bytes or more, and decode.max_source_bytes is {max_bytes}. "
            "Larger sources could fill a node's disk: raise the setting if it has the room.",
        )


def _check_unchanged(source: str, before: ObjectInfo, after: ObjectInfo) -> None:
    if before != after:
        raise SourceError(
            "changed",
            f"{source}: was replaced while it was read ({before} became {after}), so its pieces "
            "do not belong together.",
        )


def _suffix(uri: str) -> str:
    name = re.split(r"[?#]", uri)[0] if split_protocol(uri)[0] in ("http", "https") else uri
    match = _SUFFIX.search(name)
    return match.group() if match else ""
