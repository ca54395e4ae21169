"""What the reader returns: clips with their chunks, shards, and where the clips are."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokpipe.formats.shard_reader import Chunk
from tokpipe.storage.store import Store
from tokpipe.types import ChunkSpan, ClipRef, Codes, EncodedClip


@dataclass(frozen=True, slots=True)
class Clip:
    """One tokenized clip."""

    clip_id: str
    source_uri: str
    fps: float  # Frames per second after resampling
    chunks: tuple[Chunk, ...]
    metadata: dict[str, Any]  # Columns carried from the source
    plan_row: int  # Position of the clip's row in the stored plan
    segment: int  # Which of the ``num_segments`` clips of that row this is
    num_segments: int
    marks: tuple[str, ...] = ()
    """``"damaged"`` if the video is damaged and only its first frames are here."""
    damage: str | None = None  # What is missing from a damaged clip, in words
    decoder: str = ""
    encoder: str = ""  # Encoder class; empty in outputs of earlier versions
    source_sha256: str = ""  # Of the bytes of its source; empty if they are unknown
    source_version: int | None = None  # Hash of its source's size and ETag or time, if known

    @property
    def ref(self) -> ClipRef:
        where = self.plan_row, self.segment, self.num_segments
        return ClipRef(self.clip_id, *where, self.source_uri)

    def encoded(self) -> EncodedClip:
        """Return what a shard can be built from: of times, that has each chunk's first and last."""
        spans, times = list[ChunkSpan](), list[float]()
        for one in self.chunks:
            sizes = one.frame_start, one.n_frames, one.n_pad_frames, one.n_context_frames
            spans.append(ChunkSpan(one.chunk_index, *sizes, 0, one.first_is_image))
            times += [one.start_pts_s] * (one.n_frames - 1) + [one.end_pts_s]
        codes = tuple(one.codes for one in self.chunks)
        about = self.fps, self.decoder, self.marks, self.damage, self.encoder
        source = self.source_sha256, self.source_version
        return EncodedClip(self.ref, tuple(spans), codes, np.array(times), *about, *source)

    @property
    def codes(self) -> Codes:
        """(t, h, w) or (t, h, w, c) codes of all chunks, concatenated in time."""
        return np.concatenate([chunk.codes for chunk in self.chunks])


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """One shard as the manifest lists it."""

    key: str  # Relative to the output's prefix
    uri: str
    size_bytes: int
    sha256: str
    num_rows: int
    num_codes: int
    num_frames: int
    num_clips: int
    grid: tuple[int, int]  # (h, w) of all its chunks
    side_table: str  # Key of the table with one row per clip
    side_table_uri: str
    side_table_size_bytes: int
    side_table_sha256: str
    output: int = 0  # Which of the outputs that are read as one it is in


class ShardList(Sequence[ShardInfo]):
    """Shards in the order in which the manifest lists them. Holds no object per shard."""

    def __init__(self, *outputs: tuple[Store, pa.Table]) -> None:
        """``outputs``: the store of each, and its table of shards."""
        self._stores, tables = zip(*outputs, strict=True)
        self._table = pa.concat_tables(tables)
        self.of_outputs = [len(table) for table in tables]
        """Number of shards of each output."""
        self.clip_counts: NDArray[np.int64] = self.field("num_clips")
        """(shards,) number of clips in each shard."""

    def __len__(self) -> int:
        return len(self.clip_counts)

    def field(self, name: str) -> NDArray[Any]:
        """(shards,) one field of ``ShardInfo``, of all shards."""
        found: NDArray[Any] = self._table.column(name).to_numpy()
        return found

    @overload
    def __getitem__(self, index: int) -> ShardInfo: ...
    @overload
    def __getitem__(self, index: slice) -> list[ShardInfo]: ...
    def __getitem__(self, index: int | slice) -> ShardInfo | list[ShardInfo]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        number = range(len(self))[index]
        output = int(np.searchsorted(np.cumsum(self.of_outputs), number, side="right"))
        (row,) = self._table.slice(number, 1).to_pylist()
        key, side_table, store = row.pop("shard"), row["side_table"], self._stores[output]
        del row["seq"]
        return ShardInfo(
            key=key,
            uri=store.uri_of(key),
            side_table_uri=store.uri_of(side_table),
            grid=(row.pop("h"), row.pop("w")),
            output=output,
            **row,
        )


class ClipIndex:
    """Finds shards by a 64-bit hash of the clip id, so 100 million clips take 1.2 GB.

    Two ids may share a hash, so look into the shard to be sure.
    """

    def __init__(self, shards: Iterable[Sequence[str]]) -> None:
        """Index the ids of the clips of each shard, in the order in which shards are numbered."""
        packed, sizes = bytearray(), []
        for ids in shards:
            packed += b"".join(map(_hash, ids))
            sizes.append(len(ids))
        hashes = np.frombuffer(packed, np.uint64)
        order = np.argsort(hashes)
        self._hashes = hashes[order]
        self._shards = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)[order]

    def shards_of(self, clip_id: str) -> list[int]:
        """Return the numbers of the shards that may hold the clip; empty if none does."""
        (wanted,) = np.frombuffer(_hash(clip_id), np.uint64)
        first, last = (np.searchsorted(self._hashes, wanted, side) for side in ("left", "right"))
        return list(map(int, self._shards[first:last]))

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Yield two shards for each hash that both have: maybe they have the same clip."""
        for at in np.flatnonzero(self._hashes[1:] == self._hashes[:-1]):
            one, other = sorted(map(int, self._shards[at : at + 2]))
            if one != other:
                yield one, other


def _hash(clip_id: str) -> bytes:
    """Unlike ``hash``, the same in every process: readers are pickled to workers."""
    return hashlib.blake2b(clip_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
