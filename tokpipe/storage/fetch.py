"""Makes one video a local file, which decoders need."""

import contextlib
import functools
import hashlib
import os
import re
import socket
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import fsspec

from tokpipe.config.job import StoreOptions
from tokpipe.errors import (
    AccessDenied,
    Changed,
    ConfigError,
    NodeTrouble,
    NotFound,
    SourceError,
    StorageError,
)
from tokpipe.identity import MEMBER_VERSION_BYTES, TAR_BLOCK, version_of
from tokpipe.storage.client import Client, client_of, split_protocol
from tokpipe.storage.ranged import RangedFile, ranged_file
from tokpipe.storage.trouble import Trouble, classify
from tokpipe.types import ArchiveMember

PIECE_BYTES = 16 * 2**20  # Bytes that are read, and held in memory, at a time
MIN_PARTIAL_BYTES = 64 * 2**20  # Of smaller videos, a few more calls take longer than all bytes
_BLOCK_BYTES = 2**16

_REASONS = {Changed: "changed", NotFound: "missing", AccessDenied: "access_denied"}
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}$")


class Parts:
    """The blocks of a stored video that a copy has. ``count(bytes, seconds)`` is told of others."""

    def __init__(self, source: str, file: RangedFile, count: Callable[[int, float], None]) -> None:
        self._source, self._file, self._count = source, file, count
        self.has = bytearray(-(-file.size // _BLOCK_BYTES))  # By block: 1 or 0

    def fill(self, copy: int, start: int, end: int) -> tuple[int, int]:
        """Fetch what a copy lacks of a range, or raise as ``fetch_to_file`` does; return the range
        around ``start`` that it has now."""
        first, last = start // _BLOCK_BYTES, min(-(-end // _BLOCK_BYTES), len(self.has))
        with source_errors(self._source), _node_trouble():
            while (at := self.has.find(0, first, last)) >= 0:
                stop = self.has.find(1, at, last) % (last + 1)
                stop, started = min(stop, at + PIECE_BYTES // _BLOCK_BYTES), time.monotonic()
                self._file.seek(at * _BLOCK_BYTES)
                data = self._file.read((stop - at) * _BLOCK_BYTES)
                with open(copy, "r+b", closefd=False) as file:
                    file.seek(at * _BLOCK_BYTES)
                    file.write(data)
                self.has[at:stop] = b"\1" * (stop - at)
                self._count(len(data), time.monotonic() - started)
            os.utime(copy, ns=(0, 0))  # it remains the same version
        stop = self.has.find(0, first) % (len(self.has) + 1)
        return (self.has.rfind(0, 0, first) + 1) * _BLOCK_BYTES, stop * _BLOCK_BYTES


@dataclass(slots=True)
class LocalVideo:
    """A video as a local file. A copy has no name on disk: no other process can delete it, and it
    does not outlive this one."""

    path: Path  # For a copy below ``/proc``, where only this process can open it
    version: int | None = None
    copy: int | None = None  # The descriptor of a copy
    file_name: str = ""  # Of a copy: another one each time, with the video's extension
    parts: Parts | None = None  # Of a copy that is filled as it is read

    @property
    def sha256(self) -> str:
        """Of its bytes as they are now, in hex; empty if not all were fetched, or can be read."""
        if self.parts is not None:
            return ""
        with contextlib.suppress(OSError):  # decoders find out whose fault it is
            now = self.path.stat()
            state = self.file_name, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns
            return _read_once(self.path, state)
        return ""

    def close(self) -> None:
        """Free the space of a copy."""
        if self.copy is not None:
            os.ftruncate(self.copy, 0)  # A decoder may still have it open.
            os.close(self.copy)
            self.copy = None

    def __del__(self) -> None:
        self.close()


def fetch_to_file(
    uri: str,
    member: ArchiveMember | None,
    *,
    options: StoreOptions,
    max_bytes: int,
    version: int | None = None,
    count: Callable[[int, float], None] | None = None,
) -> LocalVideo:
    """Return a local file with the video ``uri``: itself, or a copy in ``TMPDIR``. Raises
    ``SourceError`` for what is the fault of this video, also if it is another ``version``, and
    other errors for what is the fault of the store or of this node. With ``count``,
    as in ``Parts``, the copy of a large object is empty, and ``VideoDecoder`` fills it."""
    protocol, path = split_protocol(uri)
    if member is None and protocol == "file":
        found = _local_version(Path(path), max_bytes)
        check_version(uri, found, version)
        return LocalVideo(Path(path), found)
    source = uri if member is None else member.archive_uri
    with source_errors(source), new_copy(extension_of(uri)) as (video, file):
        client = client_of(source, options)
        if client.is_local:
            _local_version(Path(client.path_of(source)), max_bytes=2**63)  # not a pipe
        info = client.info(source)
        if member is None:
            start, size, head, video.version = 0, info.size or 0, 0, info.source_version
            check_version(source, video.version, version)
        else:
            start, size, video.version = member.offset, member.size, version
            head = 0 if version is None else TAR_BLOCK
        check_size(source, size, max_bytes)
        if member is None and not client.can_list:  # from a web server, in one answer
            _copy_stream(client, source, file, max_bytes)
            return video
        stored = ranged_file(client, source, info)
        if count and member is None and info.version and size > MIN_PARTIAL_BYTES:
            file.truncate(size)
            video.parts = Parts(source, stored, count)
            return video
        if start + size > stored.size:
            what = f"{source}: ends at byte {stored.size}, but its member at byte {start + size}"
            # A member of a known version was whole when it was planned.
            raise SourceError("truncated" if version is None else "changed", what)
        stored.seek(start - head)
        for at in range(start - head, start + size, PIECE_BYTES):
            piece = stored.read(min(PIECE_BYTES, start + size - at)) or b""
            if at < start:  # the header of a member comes with its data
                check_version(source, version_of(piece[:MEMBER_VERSION_BYTES]), version)
                piece = piece[head:]
            file.write(piece)
        return video


@contextlib.contextmanager
def source_errors(source: str) -> Iterator[None]:
    """Raise ``SourceError`` in place of a store's errors that are the fault of ``source``."""
    try:
        yield
    except ConfigError as error:
        if split_protocol(source)[0] in fsspec.available_protocols():
            raise  # a package is missing on this node, or storage.options are wrong
        raise SourceError("bad_uri", str(error)) from error
    except (Changed, NotFound, AccessDenied) as error:
        raise SourceError(_REASONS[type(error)], str(error)) from error
    except StorageError as error:
        trouble = classify(error.__cause__ or error)
        if trouble is Trouble.NODE:
            raise NodeTrouble(f"{error} (on {socket.gethostname()})") from error
        if trouble is Trouble.BAD_NAME:
            raise SourceError("bad_uri", str(error)) from error
        # A list of web addresses spans many servers; a job can continue without one of them.
        if split_protocol(source)[0] not in ("http", "https"):
            raise
        is_denied = trouble is Trouble.CREDENTIALS
        raise SourceError("access_denied" if is_denied else "unreachable", str(error)) from error


def check_readable(path: Path) -> None:
    """Raise NodeTrouble if a file can no longer be read, SourceError if it is gone."""
    version = _local_version(path, max_bytes=2**63)
    try:
        _read_once(path, version)
    except OSError as error:
        raise NodeTrouble(f"{path} on {socket.gethostname()}: cannot be read ({error})") from error


@functools.lru_cache  # a long file has many clips
def _read_once(path: Path, _version: object) -> str:
    """The SHA-256 of this version of a file."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def extension_of(uri: str) -> str:
    """Return the extension of a file's name, which FFmpeg considers, with its dot; may be empty."""
    is_web = split_protocol(uri)[0] in ("http", "https")
    suffix = _SUFFIX.search(re.split(r"[?#]", uri)[0] if is_web else uri)
    return suffix[0] if suffix else ""


def check_folders(path: Path, folders: Iterable[Path]) -> None:
    """Raise NodeTrouble if the folder of a file's source is gone or empty, as without its mount."""
    for folder in folders:
        with contextlib.suppress(OSError):
            if not path.is_relative_to(folder) or any(folder.iterdir()):
                continue
        where = f"{folder} on {socket.gethostname()}"
        found = f"{where}: is gone or empty, but the plan lists videos there: mount it again"
        raise NodeTrouble(f"{found}. If they were deleted, put any file there to reject them")


def _local_version(path: Path, max_bytes: int) -> int:
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode):
            os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        trouble = classify(error)
        if trouble in (Trouble.TRANSIENT, Trouble.NODE):
            raise NodeTrouble(f"{path} on {socket.gethostname()}: {error}") from error
        known = {Trouble.NOT_FOUND: "missing", Trouble.DENIED: "access_denied"}
        reason = known.get(trouble, "bad_uri")
        raise SourceError(reason, f"{path}: cannot be opened ({error})") from error
    if not stat.S_ISREG(status.st_mode):
        mode = stat.filemode(status.st_mode)
        raise SourceError("not_a_file", f"{path}: is not a regular file but {mode}")
    check_size(str(path), status.st_size, max_bytes)
    return version_of(status.st_size, status.st_mtime_ns)


@contextlib.contextmanager
def new_copy(suffix: str = "") -> Iterator[tuple[LocalVideo, BinaryIO]]:
    """Yield a new copy and the file to fill; a disk that is full or fails is ``NodeTrouble``."""
    with _node_trouble():
        folder = Path(os.environ.get("TMPDIR") or tempfile.gettempdir())
        folder.mkdir(parents=True, exist_ok=True)  # a cleaner may have removed it
        video = LocalVideo(Path(), file_name=f"{uuid.uuid4().hex}{suffix}")
        with tempfile.TemporaryFile(dir=folder) as file:
            yield video, file
            file.flush()
            video.copy = os.dup(file.fileno())
            video.path = Path(f"/proc/self/fd/{video.copy}")


@contextlib.contextmanager
def _node_trouble() -> Iterator[None]:
    """Raise ``NodeTrouble`` in place of the errors of the disk that copies are on."""
    try:
        yield
    except OSError as error:
        found = f"TMPDIR on {socket.gethostname()}: the local disk is full or failing ({error})"
        do = "Free space, or set TMPDIR to a larger disk on every node"
        raise NodeTrouble(f"{found}. {do}") from error


def _copy_stream(client: Client, source: str, file: BinaryIO, max_bytes: int) -> None:
    """Copy from a web server, whose one answer is of one version; after an error, start again."""

    def attempt(_: float) -> None:
        file.seek(0)
        file.truncate()
        with client.fs.open(client.path_of(source), "rb", block_size=0) as stream:
            while piece := stream.read(PIECE_BYTES):
                check_size(source, file.tell() + len(piece), max_bytes)
                with _node_trouble():  # else it would look like the store's error
                    file.write(piece)

    client.run("reading it", source, attempt)


def check_size(source: str, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        found = f"{source}: has at least {size} bytes, but decode.max_source_bytes is {max_bytes}"
        raise SourceError("too_large", found)


def check_version(source: str, found: int | None, planned: int | None) -> None:
    if planned not in (None, found):
        where = f"{source}: is not what was planned, or first read"
        what = "its size, time of change, ETag or, in a tar, header differs"
        do = "Restore it, or set on_change: accept for its source"
        raise SourceError("changed", f"{where}: {what}. {do}")
