"""Reads shards, and checks their footer, pages, row CRCs, order and code range."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tokpipe.config.traits import by_codebook
from tokpipe.errors import CorruptOutput
from tokpipe.formats.checks import as_damage, check_bytes, damaged, in_brief
from tokpipe.formats.shard import ShardFooter, ShardMetadata, codes_crc32, shard_schema
from tokpipe.formats.tables import UNREADABLE, check_bounds, check_texts
from tokpipe.types import Codes, Receipt


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk of a clip: a row of a shard, whose columns the fields are."""

    clip_id: str
    chunk_index: int
    n_chunks: int
    source_uri: str
    start_pts_s: float  # Presentation time of the first real frame, in seconds of the source
    end_pts_s: float  # Presentation time of the last real frame
    frame_start: int  # First real frame that the codes cover, counted in the resampled clip
    n_frames: int  # Real frames that the codes cover
    n_pad_frames: int  # Repeats of the last frame that were encoded after them
    n_context_frames: int  # Frames that were encoded before them and whose codes were dropped
    first_is_image: bool  # The first latent frame covers 1 frame instead of ``temporal_stride``
    fps: float
    codes: Codes
    """(t, h, w) or (t, h, w, c), 0 <= code < codebook size. As a ``ShardReader`` yields it, a
    read-only view that keeps its row group in memory."""


class ShardReader:
    """One shard, read row group by row group.

    Each row group is checked as it is read: page checksums, row CRCs, code range and shapes. That
    covers neither the footer nor the parts of the file that are not read: for those, first compare
    the file with the manifest (``check_bytes``).

    Args:
        source: the file's bytes, or an open file that pyarrow can seek in.
        page_checksums: False skips them, for bytes that were compared with the manifest.

    Raises:
        CorruptOutput: the footer is damaged or not a shard's. Methods raise it for damaged rows.
    """

    def __init__(self, uri: str, source: Any, *, page_checksums: bool = True) -> None:
        self.uri = uri
        with as_damage(uri, "it does not open as a shard", *UNREADABLE):
            self._file = pq.ParquetFile(
                pa.BufferReader(source) if isinstance(source, bytes) else source,
                page_checksum_verification=page_checksums,
                pre_buffer=True,  # Joins the columns of a row group into few requests
            )
            check_bounds(self._file.metadata)
            schema = self._file.schema_arrow.remove_metadata()
        self.num_row_groups: int = self._file.num_row_groups
        self.footer = ShardFooter.of_key_values(uri, self._file.metadata.metadata or {})
        self.tokenizer = self.footer.metadata.tokenizer
        self.sides = (*self.footer.grid, *self.tokenizer.axes)  # Of the codes of a latent frame
        self.schema = shard_schema(self.tokenizer.code_dtype, self.tokenizer.codes_per_position)
        if schema != self.schema:
            found = f"its columns are not those of a shard: {in_brief(schema.to_string())}"
            raise damaged(uri, found)
        if (found_rows := self._file.metadata.num_rows) != (num_rows := self.footer.num_rows):
            raise damaged(uri, f"it has {found_rows} rows, but its footer says {num_rows}")

    def read_row_group(self, group: int, columns: Sequence[str] | None = None) -> pa.RecordBatch:
        """Return a row group as one record batch. Codes are checked if they are among columns."""
        names = self.schema.names if columns is None else list(columns)
        extra = ("t", *"hwc"[: len(self.sides)], "codes", "codes_crc32") if "codes" in names else ()
        with as_damage(self.uri, f"row group {group} cannot be read", *UNREADABLE):
            table = self._file.read_row_group(group, columns=[*dict.fromkeys((*names, *extra))])
        check_texts(self.uri, table)
        batches = table.combine_chunks().to_batches()
        if len(batches) != 1:
            raise damaged(self.uri, f"row group {group} has no rows")
        if extra:
            self._check_codes(group, batches[0])
        return batches[0].select(names)

    def _check_codes(self, group: int, batch: pa.RecordBatch) -> None:
        codes = batch.column("codes")
        offsets, flat = codes.offsets.to_numpy(), codes.values.to_numpy()
        t, crcs = (batch.column(name).to_numpy() for name in ("t", "codes_crc32"))
        grids = np.stack([batch.column(name).to_numpy() for name in "hwc"[: len(self.sides)]], 1)
        lengths = np.diff(offsets)
        wrong_grid = (grids != self.sides).any(1) | (min(self.sides) < 0)
        wrong = wrong_grid | (t < 0) | (lengths != t.astype(np.int64) * math.prod(self.sides))
        if wrong.any():
            row = int(wrong.argmax())
            found = f"has {lengths[row]} codes for a grid of {(int(t[row]), *self.sides)}"
            if wrong_grid[row]:
                shape = "x".join(map(str, self.sides))
                found = f"has grid {tuple(grids[row].tolist())} in a shard of {shape}"
            raise self._damaged_row(group, row, found)
        spans = zip(pairwise(offsets.tolist()), crcs.tolist(), strict=True)
        for row, ((start, end), wanted) in enumerate(spans):
            if (crc := codes_crc32(flat[start:end])) != wanted:
                found = f"has codes of CRC-32 {crc:08x}, not {wanted:08x}"
                raise self._damaged_row(group, row, found)
        grouped = flat.reshape(-1, *self.tokenizer.axes)
        for part, size in by_codebook(grouped, self.tokenizer.sizes):
            if len(part) and (largest := int(part.max())) >= size:
                place = int(part.argmax()) * (flat.size // part.size)
                row = int(np.searchsorted(offsets, place, side="right")) - 1
                raise self._damaged_row(group, row, f"has code {largest} of a codebook of {size}")

    def _damaged_row(self, group: int, row: int, found: str) -> CorruptOutput:
        return damaged(self.uri, f"row {row} of row group {group} {found}")

    def rows(self, groups: Iterable[int] | None = None) -> Iterator[Chunk]:
        """Yield rows in file order, from ``groups`` or from all row groups."""
        fields = [field for field in Chunk.__slots__ if field != "codes"]
        for group in range(self.num_row_groups) if groups is None else groups:
            batch = self.read_row_group(group)
            codes, t = batch.column("codes"), batch.column("t").to_pylist()
            offsets, flat = codes.offsets.to_numpy(), codes.values.to_numpy()
            for row, record in enumerate(batch.select(fields).to_pylist()):
                block = flat[offsets[row] : offsets[row + 1]]
                yield Chunk(**record, codes=block.reshape(t[row], *self.sides))

    def clips(self) -> Iterator[tuple[Chunk, ...]]:
        """Yield the rows of each clip, complete and in order."""
        previous = ""
        for clip_id, group in groupby(self.rows(), key=lambda row: row.clip_id):
            if clip_id <= previous:
                raise damaged(self.uri, f"clip {clip_id} follows clip {previous}, out of order")
            yield self._whole(tuple(group))
            previous = clip_id

    def clip(self, clip_id: str) -> tuple[Chunk, ...] | None:
        """Return a clip's rows, or None. Reads only row groups that may hold it."""
        metadata = self._file.metadata
        ids = [metadata.row_group(i).column(0).statistics for i in range(self.num_row_groups)]
        wanted = clip_id.encode(errors="replace")  # raw bounds need not be UTF-8
        groups = [  # without bounds, as of ids that are too long, any id may be there
            i
            for i, one in enumerate(ids)
            if not one or not one.has_min_max or one.min_raw <= wanted <= one.max_raw
        ]
        rows = tuple(row for row in self.rows(groups) if row.clip_id == clip_id)
        return self._whole(rows) if rows else None

    def _whole(self, rows: tuple[Chunk, ...]) -> tuple[Chunk, ...]:
        found = [(row.chunk_index, row.n_chunks) for row in rows]
        if found != [(index, len(rows)) for index in range(len(rows))]:
            raise damaged(self.uri, f"clip {rows[0].clip_id} has chunks (index, count) {found}")
        return rows


def check_same_tokenizer(uri: str, found: ShardMetadata, wanted: ShardMetadata) -> None:
    """Raise CorruptOutput unless a shard's codes mean the same as those of its output."""
    if found != wanted:
        raise CorruptOutput(
            f"{uri} was made with fingerprint {found.fingerprint} ({found.tokenizer}), but its "
            f"output has fingerprint {wanted.fingerprint} ({wanted.tokenizer}). Its codes mean "
            "something different from the other shards'. Tokenize to a new output prefix."
        )


def check_shard(uri: str, data: bytes, receipt: Receipt, metadata: ShardMetadata) -> None:
    """Raise CorruptOutput at the first difference of a shard from the manifest or the job."""
    check_bytes(uri, data, size_bytes=receipt.size_bytes, sha256_hex=receipt.sha256)
    shard = ShardReader(uri, data)
    footer = shard.footer
    check_same_tokenizer(uri, footer.metadata, metadata)
    clip_ids, num_codes, num_frames = [], 0, 0
    for rows in shard.clips():
        clip_ids.append(rows[0].clip_id)
        num_codes += sum(row.codes.size for row in rows)
        num_frames += sum(row.n_frames for row in rows)
    found = (footer.grid, footer.num_rows, num_codes, num_frames, footer.encoders)
    names = "grid", "num_rows", "num_codes", "num_frames", "encoders"
    listed = tuple(getattr(receipt, name) for name in names)
    if found != listed or footer.num_codes != num_codes:
        held = f"it holds ({', '.join(names)}) = {found}"
        raise damaged(uri, f"{held}, but the manifest lists {listed}")
    if clip_ids != sorted(clip.clip_id for clip in receipt.clips):
        raise damaged(uri, f"its {len(clip_ids)} clips are not those that the manifest lists")
