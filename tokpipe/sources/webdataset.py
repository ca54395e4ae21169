"""WebDataset tars: one row per video member, indexed by headers alone."""

from __future__ import annotations

import io
import os
import tarfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa

from tokpipe.config.job import StoreOptions
from tokpipe.config.sources import WebDatasetSource
from tokpipe.errors import AccessDenied, ConfigError, NotFound
from tokpipe.sources.rows import make_batch, row_schema
from tokpipe.storage.listing import iter_matches
from tokpipe.storage.ranged import open_ranged

TEXT_BYTES = 2**20
"""A longer ``.json`` or ``.txt`` member is not carried: its column is null."""

_CARRIED = pa.schema([("key", pa.string()), ("txt", pa.string()), ("json", pa.string())])
_HEADER_BYTES = 4 * 2**20
"""The most that a header with a long name or pax records may take."""
_WINDOW_BYTES = 128 * 1024
"""Read at once: a header, and the small members around it, in one request."""
_PENDING_CLIPS = 10_000
_PENDING_TEXT_CHARS = 64 * 2**20
_BATCH_ROWS = 8192
_THREADS = 32


class WebDatasetRows:
    """One row per member with a video extension, tar by tar, in the order of the tars' names.

    The texts ``KEY.txt`` and ``KEY.json`` of a video ``KEY.mp4`` become columns, where KEY is
    the name up to the first dot of its last part. They are found within ``_PENDING_CLIPS`` keys
    of the video, not only next to it. Member names are identity and never a path.

    A tar that is cut or damaged gives its whole members, and one row with a problem for the rest.
    """

    def __init__(self, label: str, config: WebDatasetSource, options: StoreOptions) -> None:
        self.label = label
        self._config = config
        self._options = options
        self._extensions = frozenset(ext.lower().lstrip(".") for ext in config.video_extensions)

    def carried(self) -> pa.Schema:
        return _CARRIED

    def batches(self) -> Iterator[pa.RecordBatch]:
        uris = sorted(match.uri for match in iter_matches(self._config.uri, self._options))
        if not uris:
            raise ConfigError(
                f"{self.label}: there is no tar {self._config.uri}. A job without clips is surely "
                "a mistake: check the path; {000..999} is not expanded, write * for it."
            )
        # Reading headers is waiting for one small answer after the other, so many tars at once.
        pool = ThreadPoolExecutor(min(_THREADS, len(uris)))
        waiting: deque[Future[list[pa.RecordBatch]]] = deque()
        try:
            for uri in uris:
                waiting.append(pool.submit(self._index, uri))
                if len(waiting) > _THREADS:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _index(self, uri: str) -> list[pa.RecordBatch]:
        rows = _TarRows(uri)
        try:
            with open_ranged(uri, self._options, _WINDOW_BYTES) as file:
                clips = _Clips(self._extensions)
                for member in _members(file):
                    clips.add(member, file)
                    rows.extend(clips.settled())
                rows.extend(clips.rest())
        except _Damaged as error:
            rows.extend(clips.rest())
            rows.add_problem(f"{uri} {error}")
        except (NotFound, AccessDenied) as error:
            rows.add_problem(str(error))
        return rows.batches()


@dataclass
class _Clip:
    """A video member, with the texts of its key."""

    name: str
    key: str
    offset: int
    size: int
    txt: str | None
    json: str | None


@dataclass
class _Group:
    """The members of one key."""

    videos: list[tarfile.TarInfo] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    """By what follows the key: ``txt``, ``json``, or ``1.txt`` beside ``1.mp4``."""

    def clips(self, key: str) -> Iterator[_Clip]:
        for member in self.videos:
            stem = _split_name(member.name)[1].lower().rpartition(".")[0]
            txt, json = (
                self.texts.get(f"{stem}.{kind}", self.texts.get(kind)) for kind in ("txt", "json")
            )
            name, size = _printable(member.name), member.size
            yield _Clip(name, _printable(key), member.offset_data, size, txt, json)


class _Clips:
    """Joins videos and texts by key, over a bounded stretch of one tar."""

    def __init__(self, extensions: frozenset[str]) -> None:
        self._extensions = extensions
        self._groups: dict[str, _Group] = {}
        self._text_chars = 0

    def add(self, member: tarfile.TarInfo, file: io.BufferedReader) -> None:
        key, ending = _split_name(member.name)
        extension = ending.rpartition(".")[2].lower()
        if not key or extension not in self._extensions | {"txt", "json"}:
            return
        group = self._groups.setdefault(key, _Group())
        if extension in self._extensions:
            group.videos.append(member)
        elif member.size <= TEXT_BYTES:
            file.seek(member.offset_data)
            text = file.read(member.size).decode("utf-8", "replace")
            group.texts[ending.lower()] = text
            self._text_chars += len(text)

    def settled(self) -> Iterator[_Clip]:
        """Give up the oldest keys while too much is held."""
        while len(self._groups) > _PENDING_CLIPS or self._text_chars > _PENDING_TEXT_CHARS:
            key = next(iter(self._groups))
            group = self._groups.pop(key)
            self._text_chars -= sum(map(len, group.texts.values()))
            yield from group.clips(key)

    def rest(self) -> Iterator[_Clip]:
        for key, group in self._groups.items():
            yield from group.clips(key)
        self._groups = {}


class _TarRows:
    """Collects the rows of one tar."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._batches: list[pa.RecordBatch] = []
        self._clips: list[_Clip] = []

    def extend(self, clips: Iterator[_Clip]) -> None:
        for clip in clips:
            self._clips.append(clip)
            if len(self._clips) >= _BATCH_ROWS:
                self._flush()

    def add_problem(self, problem: str) -> None:
        self._flush()
        columns = {"source_uri": [self._uri], "problem": [problem]}
        nothing = [pa.nulls(1, kind) for kind in _CARRIED.types]
        self._batches.append(make_batch(columns, nothing, row_schema(_CARRIED)))

    def batches(self) -> list[pa.RecordBatch]:
        self._flush()
        return self._batches

    def _flush(self) -> None:
        clips, self._clips = self._clips, []
        if not clips:
            return
        columns = {
            "source_uri": [f"{self._uri}#{clip.name}" for clip in clips],
            "archive_uri": [self._uri] * len(clips),
            "member_offset": [clip.offset for clip in clips],
            "member_size": [clip.size for clip in clips],
        }
        carried = [pa.array([getattr(c, n) for c in clips], pa.string()) for n in _CARRIED.names]
        self._batches.append(make_batch(columns, carried, row_schema(_CARRIED)))


class _Damaged(Exception):
    """A tar that cannot be read on; the text completes a sentence that begins with its name."""


class _Headers:
    """What ``tarfile`` reads of an archive: headers, so no single read is large."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _HEADER_BYTES:
            raise _Damaged(f"has a header of {size} bytes: it is damaged there")
        return self._file.read(size)


def _members(file: io.BufferedReader) -> Iterator[tarfile.TarInfo]:
    """Yield the regular members that are there whole.

    Raises:
        _Damaged: after those, when something is left that is no member.
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
                        f"ends at byte {size}, within member {_printable(member.name)}: it was "
                        "cut, and the members from there on are lost"
                    )
                if member.isreg() and not member.issparse():
                    yield member
            end = archive.offset
    except (tarfile.TarError, ValueError, RecursionError) as error:
        file.seek(0)
        packed = file.read(2) == b"\x1f\x8b"
        what = "is compressed, so no member can be read in place" if packed else "is no whole tar"
        raise _Damaged(f"{what} ({error})") from error
    # tarfile takes any block that is no header for the end.
    file.seek(end)
    if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise _Damaged(f"has no header at byte {end}, where one must be: members may be lost")


def _split_name(name: str) -> tuple[str, str]:
    """Split into (key, ending) at the first dot of the last part; no key for hidden names."""
    folder, slash, last = name.rpartition("/")
    stem, dot, ending = last.partition(".")
    return (folder + slash + stem, ending) if stem and dot else ("", "")


def _printable(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
