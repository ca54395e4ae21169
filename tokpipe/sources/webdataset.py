"""WebDataset tars: one row per video member, indexed from headers alone."""

import functools
import io
import itertools
import os
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tokpipe.config.job import StoreOptions
from tokpipe.config.sources import MEDIA_EXTENSIONS, WebDatasetSource
from tokpipe.errors import AccessDenied, NotFound
from tokpipe.identity import MEMBER_VERSION_BYTES, version_of
from tokpipe.sources.rows import ROW_SCHEMA, RowSource, printable
from tokpipe.storage.left_out import OVERWRITTEN, LeftOut, kind_of
from tokpipe.storage.ranged import Pinned
from tokpipe.storage.read_ahead import read_ahead

TEXT_BYTES = 2**20  # A longer ``.json`` or ``.txt`` member is not carried: its column is null

_CARRIED = pa.schema([("key", pa.string()), ("txt", pa.string()), ("json", pa.string())])
_SCHEMA = pa.schema([*ROW_SCHEMA, *_CARRIED])
_HEADER_BYTES = 4 * 2**20  # Maximum size of a header with a long name or pax records
_WINDOW_BYTES = 128 * 1024  # Read at once: a header and the small members around it, in one request
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

    As ``tar -i`` unpacks them, the last of several members with one name wins, and what follows
    an end mark is read. A video that has no data in one place (a link, a sparse member) is a row
    with a problem, and so is the rest of a cut or damaged tar. Members of other kinds, and texts
    without a video, are left out and counted.
    """

    config: WebDatasetSource

    def carried(self) -> pa.Schema:
        return _CARRIED

    def batches(self) -> Iterator[pa.RecordBatch]:
        extensions = self.config.video_extensions or MEDIA_EXTENSIONS[self.config.media]
        wanted = {extension.lower().lstrip(".") for extension in extensions}
        index = functools.partial(_index, options=self.listing.options, extensions=wanted)
        # Reading headers is waiting for small answers, so many tars are read at the same time.
        for rows, left_out in read_ahead(index, self.matching_uris(), _THREADS):
            self.listing.left_out.update(left_out)
            yield from rows.to_batches(_BATCH_ROWS)


@functools.lru_cache(4)
def find_members(uri: str, extension: str, options_json: str) -> dict[str, dict[str, Any]]:
    """Return the rows of a tar's videos with an extension as it is now, by ``source_uri``."""
    rows, _ = _index(uri, StoreOptions.model_validate_json(options_json), {extension})
    return {row["source_uri"]: row for row in rows.to_pylist() if row["problem"] is None}


def _index(uri: str, options: StoreOptions, extensions: set[str]) -> tuple[pa.Table, LeftOut]:
    clips = _Clips(uri, extensions)
    rows, batches = clips.rows(options), []
    while some := list(itertools.islice(rows, _BATCH_ROWS)):
        batches.append(pa.RecordBatch.from_pylist(some, _SCHEMA))
    table, left_out = pa.Table.from_batches(batches, _SCHEMA), clips.left_out
    return _last_of_each_name(table, left_out), left_out


def _last_of_each_name(rows: pa.Table, left_out: LeftOut) -> pa.Table:
    """Drop members that a later one overwrites when the tar is unpacked."""
    names = pc.replace_substring_regex(rows["source_uri"], r"#(\./)+", "#", max_replacements=1)
    if pc.count_distinct(names).as_py() == rows.num_rows:
        return rows
    last = {name: row for row, name in enumerate(names.to_pylist())}
    for row in set(range(rows.num_rows)).difference(last.values()):
        left_out.add(OVERWRITTEN, rows["source_uri"][row].as_py().partition("#")[2])
    return rows.take(sorted(last.values()))


_Row = dict[str, Any]  # Of ``_SCHEMA``: a video with its texts, or the problem of a tar

_Group = tuple[list[tuple[str, _Row]], dict[str, str]]
"""Of one key: its videos, with what is between key and extension, and its texts by what follows
the key, such as ``txt``, or ``1.txt`` beside ``1.mp4``."""


class _Clips:
    def __init__(self, uri: str, extensions: set[str]) -> None:
        self._uri = uri
        self._extensions = extensions
        self.left_out = LeftOut()
        self._groups: defaultdict[str, _Group] = defaultdict(lambda: ([], {}))
        self._text_chars = 0

    def rows(self, options: StoreOptions) -> Iterator[_Row]:
        problem = ""
        try:
            with Pinned(self._uri, options).open(_WINDOW_BYTES) as file:
                for member in _members(file):
                    self._add(member, file)
                    yield from self._settled()
        except _Damaged as error:
            problem = f"{self._uri} {error}"
        except (NotFound, AccessDenied) as error:
            problem = str(error)
        yield from self._settled(is_last=True)
        if problem:
            yield {"source_uri": self._uri, "problem": problem}

    def _add(self, member: tarfile.TarInfo, file: io.BufferedReader) -> None:
        if member.isdir():
            return
        name = member.name
        key, ending = _split_name(name)
        stem, _, extension = ending.rpartition(".")
        if key and extension in self._extensions:
            named = {"source_uri": f"{self._uri}#{printable(name)}", "key": printable(key)}
            self._groups[key][0].append((stem, named | self._find(member, file)))
            return
        if key and extension in ("txt", "json"):
            _, texts = self._groups[key]  # which keeps its place in the order, read or not
            if member.isreg() and not member.issparse() and member.size <= TEXT_BYTES:
                if ending in texts:
                    self.left_out.add(OVERWRITTEN, name)
                file.seek(member.offset_data)
                text = file.read(member.size).decode("utf-8", "replace")
                self._text_chars += len(text) - len(texts.get(ending, ""))
                texts[ending] = text
                return
        self.left_out.add(kind_of(name), name)

    def _find(self, member: tarfile.TarInfo, file: io.BufferedReader) -> _Row:
        """Return where a video is, or why it cannot be read in place."""
        if member.isreg() and not member.issparse():
            file.seek(member.offset_data - tarfile.BLOCKSIZE)
            head = file.read(min(tarfile.BLOCKSIZE + member.size, MEMBER_VERSION_BYTES))
            place = {"member_offset": member.offset_data, "member_size": member.size}
            return {"archive_uri": self._uri, **place, "source_version": version_of(head)}
        what = "sparse, a device or a pipe, so it cannot be read in place"
        if member.islnk() or member.issym():
            what = f"a link to {member.linkname}; pack the files with tar -h --hard-dereference"
        return {"problem": printable(f"{self._uri}: its member {member.name} is {what}")}

    def _settled(self, *, is_last: bool = False) -> Iterator[_Row]:
        """Release the oldest keys while too much is held, and all of them at last."""
        while self._groups and (
            is_last or len(self._groups) > _PENDING_CLIPS or self._text_chars > _PENDING_TEXT_CHARS
        ):
            key = next(iter(self._groups))
            videos, texts = self._groups.pop(key)
            self._text_chars -= sum(map(len, texts.values()))
            unused = set(texts)
            for stem, row in videos:
                own = (f"{stem}.{kind}" for kind in ("txt", "json"))
                txt, json = (one if one in texts else one.rpartition(".")[2] for one in own)
                unused -= {txt, json}
                yield {**row, "txt": texts.get(txt), "json": texts.get(json)}
            for ending in unused:
                self.left_out.add(kind_of(f"{key}.{ending}"), f"{key}.{ending}")


class _Damaged(Exception):
    """A tar that cannot be read further; the message completes a sentence about the tar."""


class _Headers:
    """What ``tarfile`` reads from an archive: headers, so no single read is large."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell
        self.left = _HEADER_BYTES  # Of one member, whose headers may be many

    def read(self, size: int) -> bytes:
        self.left -= size
        if size < 0 or self.left < 0:
            raise _Damaged(f"has a header of more than {_HEADER_BYTES} bytes: it is damaged there")
        return self._file.read(size)


def _members(file: io.BufferedReader) -> Iterator[tarfile.TarInfo]:
    """Yield the complete members of all tars that the file consists of, or raise after those."""
    size = file.seek(0, os.SEEK_END)
    start: int | None = 0
    while start is not None:
        file.seek(start)
        try:
            with tarfile.open(fileobj=_Headers(file), mode="r:") as archive:  # type: ignore[call-overload]
                offset = start - 1
                while (member := archive.next()) is not None:
                    archive.fileobj.left = _HEADER_BYTES
                    archive.members.clear()  # tarfile keeps every header it has seen
                    if archive.offset <= offset or member.size < 0:
                        raise _Damaged(f"has a header that points back, at byte {offset}")
                    offset = archive.offset
                    end = member.offset_data + member.size
                    if member.issparse():  # it has the size that it unpacks to
                        end = archive.offset - tarfile.BLOCKSIZE + 1
                    if member.isreg() and end > size:
                        found = f"ends at byte {size}, inside member {printable(member.name)}"
                        raise _Damaged(f"{found}: it was cut short, and what follows is lost")
                    yield member
                end = archive.offset
        except (tarfile.TarError, ValueError, RecursionError) as error:
            file.seek(0)
            packed = file.read(2) == b"\x1f\x8b"
            what = "is compressed, so members cannot be read in place" if packed else "is not a tar"
            raise _Damaged(f"{what} ({error})") from error
        start = _next_block(file, end)  # tarfile takes any block that is not a header for the end
        if start == end:
            raise _Damaged(f"has no header at byte {end}, where one must be: members may be lost")


def _next_block(file: io.BufferedReader, at: int) -> int | None:
    """Return where the next block that does not consist of zeros starts, if there is one."""
    file.seek(at)
    while data := file.read(_HEADER_BYTES):
        if rest := data.lstrip(b"\0"):
            return at + (len(data) - len(rest)) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
        at += len(data)
    return None


def _split_name(name: str) -> tuple[str, str]:
    """Split at the first dot of the last part into key and lower-case ending; none if hidden."""
    folder, slash, last = name.rpartition("/")
    stem, dot, ending = last.partition(".")
    return (folder + slash + stem, ending.lower()) if stem and dot else ("", "")
