"""One output of a job, finished or still growing, as its manifest describes it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tokpipe.config.job import StoreOptions
from tokpipe.errors import CorruptOutput, NotFound
from tokpipe.formats import job_record
from tokpipe.formats.checks import check_bytes, damaged
from tokpipe.formats.job_record import JobRecord
from tokpipe.formats.manifest import (
    ManifestState,
    Totals,
    iter_entries,
    iter_rejected,
    load_state,
)
from tokpipe.formats.shard import ShardMetadata, shard_schema
from tokpipe.formats.shard_reader import ShardReader, ShardRow, check_same_tokenizer
from tokpipe.formats.side_table import OWN_COLUMNS, read_side_table
from tokpipe.formats.tokenizer_spec import TokenizerSpec
from tokpipe.reader.clip_index import ClipIndex
from tokpipe.reader.shard_list import ShardList
from tokpipe.reader.values import Chunk, Clip, ShardInfo
from tokpipe.storage import open_store
from tokpipe.storage.ranged import RangedFile
from tokpipe.storage.read_ahead import read_ahead
from tokpipe.storage.store import Store
from tokpipe.types import Rejected

_OPEN_SHARDS = 16
"""Shards whose footer and side table are kept for random access: about 1 MB each."""


def open_output(uri: str, options: StoreOptions | None = None, *, verify: bool = True) -> Output:
    """Open the output below ``uri`` as far as it is committed now.

    Args:
        uri: the job's ``output.uri``.
        options: how to reach the store, as in a job file.
        verify: compare every object with the manifest's checksums, and every row with its own,
            before any code is handed out. Costs about a second per GB.

    Raises:
        NotFound: there is no output below this URI.
        CorruptOutput: its record or its manifest is damaged.
    """
    return Output(open_store(uri, options or StoreOptions()), verify=verify)


class Output:
    """A snapshot of an output: what is committed after this was made is not in it.

    Only what the manifest lists exists here. Iterating holds two shards in memory: one that is
    read and one that is fetched.
    """

    def __init__(self, store: Store, *, verify: bool = True) -> None:
        self.store = store
        self.verify = verify
        self.record: JobRecord = job_record.read(store)
        self._metadata = ShardMetadata(self.record.fingerprint, self.record.tokenizer)
        self._state: ManifestState = load_state(store, self.record.num_rows)
        self.shards = ShardList(store, self._state.shards)
        self._index: ClipIndex | None = None
        self._open: OrderedDict[int, tuple[ShardReader, pa.Table]] = OrderedDict()
        self._verified: set[int] = set()

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decided which codes came out."""
        return self.record.fingerprint

    @property
    def tokenizer(self) -> TokenizerSpec:
        return self.record.tokenizer

    @property
    def totals(self) -> Totals:
        return self._state.totals

    @property
    def state(self) -> ManifestState:
        """What the manifest comes to: totals, and which plan rows are settled."""
        return self._state

    @property
    def num_clips(self) -> int:
        """Tokenized clips."""
        return self._state.totals.num_clips

    @property
    def num_codes(self) -> int:
        return self._state.totals.num_codes

    def rejected(self) -> Iterator[Rejected]:
        """Yield every rejected clip, with its reason. Reads the whole manifest."""
        return iter_rejected(self.store, to_seq=self._state.next_seq)

    def clips(self) -> Iterator[Clip]:
        """Yield every clip, shard by shard in the order of the manifest, by id within each."""
        for info, shard in self._opened():
            table = self._side_table(info)
            rows_of_clips = shard.clips()
            for rows, record in zip_longest(rows_of_clips, _records(table)):
                yield _clip(info, rows, record)

    def clip(self, clip_id: str) -> Clip:
        """Return one clip.

        The first call reads the whole manifest, to index it. To be verified, each shard is
        fetched whole once per process; from then on only row groups are fetched.

        Raises:
            NotFound: no clip here has this id; it may be rejected or not done yet.
        """
        if self._index is None:
            entries = iter_entries(self.store, to_seq=self._state.next_seq)
            self._index = ClipIndex.of_entries(entries)
        for number in self._index.shards_of(clip_id):
            shard, table = self._kept_open(number)
            if clip := _clip_in(self.shards[number], shard, table, clip_id):
                return clip
        raise NotFound(
            f"{self.store.uri}: holds no tokenized clip {clip_id!r}. It may be rejected, or not be "
            "committed when this output was opened. Look for it in rejected(), or open the output "
            "again."
        )

    def clips_of(
        self, info: ShardInfo, shard: ShardReader, clip_ids: Iterable[str]
    ) -> Iterator[Clip]:
        """Yield those of the clips that a shard holds, which was opened already."""
        table = self._side_table(info)
        for clip_id in clip_ids:
            if clip := _clip_in(info, shard, table, clip_id):
                yield clip

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema of shards, one row per chunk."""
        return shard_schema(self.tokenizer.code_dtype)

    def iter_batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the rows of all shards, a row group at a time, as Arrow record batches."""
        for _, shard in self._opened():
            for group in range(shard.num_row_groups):
                yield shard.read_row_group(group, columns)

    def to_table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of all shards as one Arrow table, which must fit in memory."""
        names = self.schema.names if columns is None else columns
        schema = pa.schema([self.schema.field(name) for name in names])
        return pa.Table.from_batches(self.iter_batches(columns), schema=schema)

    def iter_side_tables(self) -> Iterator[pa.Table]:
        """Yield each shard's side table: one row per clip, with the carried columns."""
        for info in self.shards:
            yield self._side_table(info)

    def verified_shard(self, info: ShardInfo) -> ShardReader:
        """Fetch a shard whole and compare it with the manifest, even where ``verify`` is off."""
        return self._reader(info, self._verified_bytes(info), verify=True)

    def _opened(self) -> Iterator[tuple[ShardInfo, ShardReader]]:
        """Open one shard after the other, while the bytes of the next are fetched and hashed."""
        if not self.verify:
            for info in self.shards:
                yield info, self._reader(info, self._ranged_file(info))
            return
        for info, data in read_ahead(self._with_bytes, self.shards, 1):
            yield info, self._reader(info, data)

    def _with_bytes(self, info: ShardInfo) -> tuple[ShardInfo, bytes]:
        return info, self._verified_bytes(info)

    def _kept_open(self, number: int) -> tuple[ShardReader, pa.Table]:
        """Open a shard for random access, verified whole the first time."""
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        info = self.shards[number]
        if self.verify and number not in self._verified:
            self._verified_bytes(info)
            self._verified.add(number)
        ranged = self._ranged_file(info)
        opened = self._reader(info, ranged), self._side_table(info)
        self._open[number] = opened
        if len(self._open) > _OPEN_SHARDS:
            self._open.popitem(last=False)
        return opened

    def _ranged_file(self, info: ShardInfo) -> RangedFile:
        """The shard as a file, so that one row group of it is read without the rest."""
        return RangedFile(info.size_bytes, partial(self.store.get_range, info.key))

    def _reader(
        self, info: ShardInfo, source: bytes | RangedFile, *, verify: bool | None = None
    ) -> ShardReader:
        """A shard's reader; bytes are those that the manifest lists, which has been checked."""
        verify = self.verify if verify is None else verify
        try:
            shard = ShardReader(
                info.uri, source, verify=verify, page_checksums=not isinstance(source, bytes)
            )
        except NotFound as error:
            raise _missing(info.uri) from error
        check_same_tokenizer(info.uri, shard.metadata, self._metadata)
        return shard

    def _verified_bytes(self, info: ShardInfo) -> bytes:
        data = self._get(info.key)
        check_bytes(info.uri, data, size_bytes=info.size_bytes, sha256_hex=info.sha256)
        return data

    def _side_table(self, info: ShardInfo) -> pa.Table:
        return read_side_table(
            info.side_table_uri,
            self._get(info.side_table),
            size_bytes=info.side_table_size_bytes,
            sha256_hex=info.side_table_sha256,
            verify=self.verify,
        )

    def _get(self, key: str) -> bytes:
        try:
            return self.store.get(key)
        except NotFound as error:
            raise _missing(self.store.uri_of(key)) from error


def _missing(uri: str) -> CorruptOutput:
    return damaged(uri, "it is missing, though the manifest lists it")


def _clip_in(info: ShardInfo, shard: ShardReader, table: pa.Table, clip_id: str) -> Clip | None:
    rows = shard.clip(clip_id)
    if not rows:
        return None
    records = table.filter(pc.field("clip_id") == clip_id).to_pylist()
    return _clip(info, rows, records[0] if records else None)


def _records(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=1024):
        yield from batch.to_pylist()


def _clip(info: ShardInfo, rows: Sequence[ShardRow] | None, record: dict[str, Any] | None) -> Clip:
    if rows is None or record is None or record["clip_id"] != rows[0].clip_id:
        raise damaged(info.side_table_uri, f"its clips are not those of {info.key}")
    return Clip(
        clip_id=record["clip_id"],
        source_uri=record["source_uri"],
        fps=record["fps"],
        chunks=tuple(
            Chunk(
                codes=row.codes.copy(),  # or one clip would keep its whole row group in memory
                first_is_image=row.first_is_image,
                frame_start=row.frame_start,
                n_frames=row.n_frames,
                n_pad_frames=row.n_pad_frames,
                n_context_frames=row.n_context_frames,
                start_pts_s=row.start_pts_s,
                end_pts_s=row.end_pts_s,
            )
            for row in rows
        ),
        metadata={name: value for name, value in record.items() if name not in OWN_COLUMNS},
        plan_row=record["plan_row"],
        segment=record["segment"],
        num_segments=record["n_segments"],
        marks=tuple(record["marks"]),
        damage=record["damage"],
    )
