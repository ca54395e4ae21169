"""Copies of which only some bytes were fetched, in the decoding child. The parent fetches what is
read. The packets of an MP4 file are listed without what is in them: its index has all that counts.
"""

import io
import socket
import struct
from itertools import pairwise
from pathlib import Path, PosixPath
from typing import Any

from tokpipe.errors import SourceError
from tokpipe.media import wire

_AHEAD_BYTES = 2**17
_BOXES = {b"ftyp", b"free", b"skip", b"wide", b"uuid", b"mdat", b"moov"}
_WHOLE_PACKETS = {"h264", "hevc", "vp9", "av1"}  # FFmpeg does not look for others inside


class PartialPath(PosixPath):
    """The path of a copy that may have holes, which are filled as they are read. Whatever is
    unusual raises ``SourceError``: then the whole file is fetched, and decides."""

    channel: socket.socket
    only_lists = False  # Whether holes are read as zeros

    def open(self, *_: Any, **__: Any) -> Any:
        self.only_lists = False
        return _PartialFile(self)

    def ask(self, start: int, end: int) -> list[int]:
        """Have a range filled; return the range around ``start`` that the copy now has."""
        wire.send(self.channel, {"needs": [start, end]})
        has: list[int] = wire.receive(self.channel)[0]["has"]
        return has

    def is_indexed(self) -> bool:
        """Whether the file is an MP4 or MOV with one index, not one in fragments."""
        at, num_indexes, size = 0, 0, self.stat().st_size
        with self.open() as file:
            while at < size:
                file.seek(at)
                length, kind, long = struct.unpack(">I4sQ", file.read(16).ljust(16))
                length = long if length == 1 else length or size - at
                if length < 8 or kind not in _BOXES:
                    return False
                at, num_indexes = at + length, num_indexes + (kind == b"moov")
        return num_indexes == 1


class _PartialFile(io.FileIO):
    def __init__(self, path: PartialPath) -> None:
        super().__init__(path)
        self._path, self._size, self._has = path, path.stat().st_size, [0, 0]

    def read(self, size: int | None = -1, /) -> bytes:
        at = self.tell()
        end = self._size if size is None or size < 0 else min(at + size, self._size)
        is_known = self._path.only_lists or self._has[0] <= at <= end <= self._has[1]
        if at < end and not is_known:
            self._has = self._path.ask(at, max(end, at + _AHEAD_BYTES))
        return super().read(size)


def list_only(path: Path, stream: Any) -> None:
    """Read no more contents of packets, but those of the last, which may decide how long it is."""
    if isinstance(path, PartialPath):
        if stream.codec_context.codec.canonical_name not in _WHOLE_PACKETS:
            raise SourceError("corrupt", "packets of this codec are found by reading them")
        last = stream.index_entries[len(stream.index_entries) - 1]
        path.ask(last.pos, last.pos + last.size)
        path.only_lists = True


def use_index(path: Path, stream: Any, packets: Any) -> None:
    """Take from the index what FFmpeg corrects by the contents of packets: key frames, DTS."""
    if isinstance(path, PartialPath):
        entries = list(stream.index_entries)
        dts = [one.timestamp for one in entries]
        if len(dts) != len(packets) or any(b <= a for a, b in pairwise(dts)):
            raise SourceError("corrupt", "the index does not list packets as they are read")
        packets.dts, packets.has_dts = dts, True
        packets.is_key = [one.is_keyframe for one in entries]


def fetch_span(path: Path, stream: Any, entry: tuple[int, int] | None, last: int) -> None:
    """Fetch at once what is decoded from ``entry``, (PTS, DTS) of a key frame, or the beginning, up
    to the frame shown at ``last``."""
    if isinstance(path, PartialPath):
        start = entry[1] if entry else stream.index_entries[0].timestamp
        # No packet is decoded later than it is shown.
        needed = [one for one in stream.index_entries if start <= one.timestamp <= last]
        ends = [one.pos + one.size for one in needed]
        path.ask(min((one.pos for one in needed), default=0), max(ends, default=0))
