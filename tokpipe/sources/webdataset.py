"""WebDataset tars: one row per video member, indexed from headers alone."""

import io
import itertools
import os
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from tokpipe.config.sources import VIDEO_EXTENSIONS, WebDatasetSource
from tokpipe.errors import AccessDenied, NotFound
from tokpipe.sources.rows import ROW_SCHEMA, RowSource, make_batch, printable
from tokpipe.storage.left_out import LeftOut, kind_of
from tokpipe.storage.ranged import open_ranged
from tokpipe.storage.read_ahead import read_ahead

TEXT_BYTES = 2**20
"""A longer ``.json`` or ``.txt`` member is not carried: its column is null."""

_CARRIED = pa.schema([("key", pa.string()), ("txt", pa.string()), ("json", pa.string())])
_SCHEMA = pa.schema([*ROW_SCHEMA, *_CARRIED])
_HEADER_BYTES = 4 * 2**20
"""Maximum size of a header with a long name or pax records."""
_WINDOW_BYTES = 128 * 1024
"""Read at once: a header and the small members around it, in one request."""
_PENDING_CLIPS = 10_000
_PENDING_TEXT_CHARS = 64 * 2**20
_BATCH_ROWS = 8192
_THREADS = 32


@dataclass
class WebDatasetRows(RowSource):
    """One row per member with a video extension, tar by tar, in the order of the tars' names.

    The texts ``KEY.txt`` and ``KEY.json`` of a video ``KEY.mp4`` become columns, where KEY is
    the name up to the first dot of its last part. They may be up to ``_PENDING_CLIPS`` keys away
    from the video. Member names identify clips and are never used as paths.

    Members of other kinds are left out and counted.

    A cut or damaged tar yields its whole members, and one row with a problem for the rest.
    """

    config: WebDatasetSource

    def carried(self) -> pa.Schema:
        return _CARRIED

    def batches(self) -> Iterator[pa.RecordBatch]:
        # Reading headers is waiting for small answers, so many tars are read at the same time.
        for batches, left_out in read_ahead(self._index, self.matching_uris(), _THREADS):
            self.left_out.update(left_out)
            yield from batches

    def _index(self, uri: str) -> tuple[list[pa.RecordBatch], LeftOut]:
        left_out = LeftOut()
        rows, batches = self._rows(uri, left_out), []
        while some := list(itertools.islice(rows, _BATCH_ROWS)):
            columns: dict[str, Any] = dict(zip(_Row._fields, zip(*some, strict=True), strict=True))
            carried = [pa.array(columns[name], pa.string()) for name in _CARRIED.names]
            batches.append(make_batch(columns, carried, _SCHEMA))
        return batches, left_out

    def _rows(self, uri: str, left_out: LeftOut) -> "Iterator[_Row]":
        extensions = self.config.video_extensions or VIDEO_EXTENSIONS
        problem = ""
        clips = _Clips(uri, {ext.lower().lstrip(".") for ext in extensions}, left_out)
        try:
            with open_ranged(uri, self.options, _WINDOW_BYTES) as file:
                for member in _members(file):
                    clips.add(member, file)
                    yield from clips.settled()
        except _Damaged as error:
            problem = f"{uri} {error}"
        except (NotFound, AccessDenied) as error:
            problem = str(error)
        yield from clips.settled(is_last=True)
        if problem:
            yield _Row(uri, problem=problem)


class _Row(NamedTuple):
    """A video member with the texts of its key, or the problem of a tar."""

    source_uri: str
    archive_uri: str | None = None
    member_offset: int | None = None
    member_size: int | None = None
    key: str | None = None
    txt: str | None = None
    json: str | None = None
    problem: str | None = None


class _Clips:
    """Joins videos and texts by key, over a bounded stretch of one tar."""

    def __init__(self, uri: str, extensions: set[str], left_out: LeftOut) -> None:
        self._uri = uri
        self._extensions = extensions
        self._left_out = left_out
        # By key: its videos, and its texts by what follows the key, such as ``txt``, or ``1.txt``
        # beside ``1.mp4``.
        self._groups: defaultdict[str, tuple[list[tarfile.TarInfo], dict[str, str]]]
        self._groups = defaultdict(lambda: ([], {}))
        self._text_chars = 0

    def add(self, member: tarfile.TarInfo, file: io.BufferedReader) -> None:
        key, ending = _split_name(member.name)
        extension = ending.rpartition(".")[2].lower()
        if key and extension in self._extensions:
            self._groups[key][0].append(member)
        elif key and extension in ("txt", "json"):
            _, texts = self._groups[key]  # which keeps its place in the order, read or not
            if member.size <= TEXT_BYTES:
                file.seek(member.offset_data)
                text = file.read(member.size).decode("utf-8", "replace")
                texts[ending.lower()] = text
                self._text_chars += len(text)
        else:
            self._left_out.add(kind_of(member.name), member.name)

    def settled(self, *, is_last: bool = False) -> Iterator[_Row]:
        """Release the oldest keys while too much is held, and all of them at last."""
        while self._groups and (
            is_last or len(self._groups) > _PENDING_CLIPS or self._text_chars > _PENDING_TEXT_CHARS
        ):
            key = next(iter(self._groups))
            videos, found = self._groups.pop(key)
            self._text_chars -= sum(map(len, found.values()))
            for member in videos:
                stem = _split_name(member.name)[1].lower().rpartition(".")[0]
                texts = [found.get(f"{stem}.{kind}", found.get(kind)) for kind in ("txt", "json")]
                source_uri = f"{self._uri}#{printable(member.name)}"
                place = self._uri, member.offset_data, member.size
                yield _Row(source_uri, *place, printable(key), *texts)


class _Damaged(Exception):
    """A tar that cannot be read further; the message completes a sentence about the tar."""


class _Headers:
    """What ``tarfile`` reads from an archive: headers, so no single read is large."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _HEADER_BYTES:
            raise _Damaged(f"has a header of {size} bytes: it is damaged there")
        return self._file.read(size)


def _members(file: io.BufferedReader) -> Iterator[tarfile.TarInfo]:
    """Yield the regular members that are complete.

    Raises:
        _Damaged: after those, if something else than a member follows.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        with tarfile.open(fileobj=_Headers(file), mode="r:") as archive:  # type: ignore[call-overload]
            offset = -1
            while (member := archive.next()) is not None:
                archive.members.clear()  # tarfile keeps every header it has seen
                if archive.offset <= offset or member.size < 0:
                    raise _Damaged(f"has a header that points back, at byte {offset}")
                offset = archive.offset
                if member.offset_data + member.size > size:
                    raise _Damaged(
                        f"ends at byte {size}, inside member {printable(member.name)}: it was "
                        "cut short, and the members from there on are lost"
                    )
                if member.isreg() and not member.issparse():
                    yield member
            end = archive.offset
    except (tarfile.TarError, ValueError, RecursionError) as error:
        file.seek(0)
        packed = file.read(2) == b"\x1f\x8b"
        what = "is compressed, so members cannot be read in place" if packed else "is not a tar"
        raise _Damaged(f"{what} ({error})") from error
    # tarfile takes any block that is not a header for the end.
    file.seek(end)
    if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise _Damaged(f"has no header at byte {end}, where one must be: members may be lost")


def _split_name(name: str) -> tuple[str, str]:
    """Split into (key, ending) at the first dot of the last part; hidden names have no key."""
    folder, slash, last = name.rpartition("/")
    stem, dot, ending = last.partition(".")
    return (folder + slash + stem, ending) if stem and dot else ("", "")
