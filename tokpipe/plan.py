"""The plan: every clip to make, fixed once, stored in parts, and read again piece by piece."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import io
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tokpipe.config.job import JobConfig
from tokpipe.errors import ConfigError, CorruptOutput, StorageError
from tokpipe.ids import SPAN_BYTES, digest, row_digests
from tokpipe.redact import redact
from tokpipe.sources.open import open_source
from tokpipe.sources.rows import ROW_SCHEMA, RowSource
from tokpipe.storage.store import Store
from tokpipe.types import ArchiveMember, WorkItem

PART_ROWS = 65_536
_PART_BYTES = 32 * 2**20
"""A part with long captions is closed earlier, since readers hold a few parts in memory."""
_NUM_EXAMPLES = 10
_WRITERS = 2
_CACHED_PARTS = 3
_ITEMS_AT_ONCE = 4096
_SORTED_AT_ONCE = 8 * 2**20
_ROW_ID = pa.field("row_id", pa.string(), nullable=False)
_OWN_COLUMNS = [_ROW_ID.name, *ROW_SCHEMA.names]


@dataclass(frozen=True, slots=True)
class PlanPart:
    """One file of the plan. It holds rows of one source."""

    key: str
    num_rows: int
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class StoredPlan:
    """What ``job.json`` keeps of a plan: enough to find, check and read every row of it."""

    plan_id: str
    """Hash of the parts' hashes: two plans with one id are the same rows in the same order."""
    parts: tuple[PlanPart, ...]
    num_rows: int
    num_problems: int
    """Rows that planning already knows to be unusable; they are among ``num_rows``."""
    num_duplicates: int
    """Rows that were dropped because an earlier one is the same clip."""
    duplicate_examples: tuple[str, ...]
    columns: dict[str, str]
    """Columns carried from the sources, name to Arrow type, for people."""
    columns_schema: str
    """The same as a serialized Arrow schema in base64, for ``PlanReader``."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> StoredPlan:
        """Return the plan that ``to_json`` was called on.

        Raises:
            CorruptOutput: it was not.
        """
        try:
            return cls(
                **{
                    **value,
                    "parts": tuple(PlanPart(**part) for part in value["parts"]),
                    "duplicate_examples": tuple(value["duplicate_examples"]),
                }
            )
        except (KeyError, TypeError) as error:
            raise CorruptOutput(
                f"job.json does not describe a stored plan ({error!r}). Without it nobody knows "
                "which clips there are. Restore job.json from a copy of the output, or tokenize "
                "to a new output prefix."
            ) from error


def write_plan(job: JobConfig, store: Store, plan_attempt: str) -> StoredPlan:
    """Read all sources once and store every row, as ``plan/<plan_attempt>/<n>.parquet``.

    Rows are kept in the order of the sources. Memory holds 8 bytes per row, a few parts, and
    the names of a glob's files while they are sorted.

    Args:
        job: its sources, dataset name and storage options are used.
        store: the output.
        plan_attempt: unlike that of any other plan ever written to this output.

    Raises:
        ConfigError: a source cannot be used, has no rows, or two rows are the same clip and the
            job does not say which to keep.
        StorageError: from the output's or a source's store.
    """
    sources = [open_source(index, config, job.storage) for index, config in enumerate(job.sources)]
    columns = _merge_columns(sources)
    writer = _PartWriter(store, f"plan/{plan_attempt}")
    try:
        for index, source in enumerate(sources):
            num_rows = writer.write(index, job.dataset, source)
            if not num_rows:
                raise ConfigError(
                    f"{source.label}: has no rows. A source without clips is surely a mistake: "
                    "look into it, or take it out of the job."
                )
        parts = writer.finish()
        duplicates = _find_duplicates(store, parts)
        if duplicates and job.on_duplicate == "refuse":
            raise ConfigError(_explain_duplicates(duplicates))
        parts = _without(store, parts, {row.position for row, _ in duplicates})
    except BaseException:
        writer.abandon()
        raise
    return StoredPlan(
        plan_id=digest([part.stored.sha256 for part in parts]),
        parts=tuple(part.stored for part in parts),
        num_rows=sum(part.stored.num_rows for part in parts),
        num_problems=sum(part.num_problems for part in parts),
        num_duplicates=len(duplicates),
        duplicate_examples=tuple(
            f"{later.place} repeats {first.place}: {later.clip}"
            for later, first in duplicates[:_NUM_EXAMPLES]
        ),
        columns={field.name: str(field.type) for field in columns},
        columns_schema=base64.b64encode(columns.serialize().to_pybytes()).decode("ascii"),
    )


def _merge_columns(sources: Sequence[RowSource]) -> pa.Schema:
    """Settle the job's carried columns, before any row is read."""
    settled: dict[str, tuple[pa.Field, str]] = {}
    for source in sources:
        for field in source.carried():
            known, label = settled.setdefault(field.name, (field, source.label))
            if known.type != field.type:
                raise ConfigError(
                    f"{source.label}: column {field.name!r} holds {field.type}, and that of "
                    f"{label} holds {known.type}. One side table cannot hold both: rename the "
                    "column or convert it in one of them."
                )
    return pa.schema([field for field, _ in settled.values()])


@dataclass(frozen=True)
class _Part:
    """A part while the plan is being made."""

    stored: PlanPart
    source: int
    first_row: int
    """Position of its first row among the rows of its source."""
    num_problems: int
    hashes: NDArray[np.uint64]
    """The first 8 bytes of each row's id."""


class _PartWriter:
    """Gives rows their ids and stores them in parts, while the next are read and checked."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self._prefix = prefix
        self._pool = ThreadPoolExecutor(_WRITERS)
        self._futures: list[Future[_Part]] = []

    def write(self, index: int, dataset: str, source: RowSource) -> int:
        """Store all rows of one source; returns how many."""
        num_rows = 0
        for table in _cut(source.batches()):
            if len(self._futures) > _WRITERS:  # else fast sources would pile up in memory
                self._futures[-_WRITERS - 1].result()
            key = f"{self._prefix}/{len(self._futures):05d}.parquet"
            args = key, index, num_rows, dataset, table
            self._futures.append(self._pool.submit(self._put, *args))
            num_rows += table.num_rows
        return num_rows

    def finish(self) -> list[_Part]:
        parts = [future.result() for future in self._futures]
        self._pool.shutdown()
        return parts

    def abandon(self) -> None:
        """Remove what was stored: no ``job.json`` will ever name it."""
        self._pool.shutdown(cancel_futures=True)
        # Leftovers harm nobody; what stopped the plan is the error to tell.
        with contextlib.suppress(StorageError):
            for number in range(len(self._futures)):
                self._store.delete(f"{self._prefix}/{number:05d}.parquet")

    def _put(self, key: str, source: int, first_row: int, dataset: str, table: pa.Table) -> _Part:
        ids = _row_digests(dataset, table)
        table = table.add_column(0, _ROW_ID, _hex_column(ids))
        num_problems = table.num_rows - table.column("problem").null_count
        hashes = np.frombuffer(ids, np.dtype("<u8"))[::2].copy()
        return _Part(_store_part(self._store, key, table), source, first_row, num_problems, hashes)


def _store_part(store: Store, key: str, table: pa.Table) -> PlanPart:
    sink = io.BytesIO()
    # A dictionary of unique texts would be given up on anyway, after costing its time.
    unique = {_ROW_ID.name, "source_uri"}
    pq.write_table(
        table,
        sink,
        compression="zstd",
        compression_level=1,
        use_dictionary=[name for name in table.column_names if name not in unique],
        write_statistics=False,
    )
    data = sink.getvalue()
    store.put(key, data)
    return PlanPart(key, table.num_rows, hashlib.sha256(data).hexdigest(), len(data))


def _cut(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Turn batches of any size into tables of ``PART_ROWS`` rows, fewer if they are large."""
    held: list[pa.RecordBatch] = []
    num_rows = num_bytes = 0
    for whole in batches:
        # Several steps, so that one batch of long captions does not become one huge part.
        steps = max(1, -(-whole.nbytes // _PART_BYTES))
        step = max(1, min(-(-whole.num_rows // steps), PART_ROWS))
        for start in range(0, whole.num_rows, step):
            batch = whole.slice(start, step)
            if held and num_bytes + batch.nbytes > _PART_BYTES:
                yield pa.Table.from_batches(held)
                held, num_rows, num_bytes = [], 0, 0
            if (over := num_rows + batch.num_rows - PART_ROWS) >= 0:
                fits = batch.num_rows - over
                yield pa.Table.from_batches([*held, batch.slice(0, fits)])
                batch = batch.slice(fits)
                held, num_rows, num_bytes = [], 0, 0
            if batch.num_rows:
                held.append(batch)
                num_rows += batch.num_rows
                num_bytes += batch.nbytes
    if num_rows:
        yield pa.Table.from_batches(held)


def _row_digests(dataset: str, table: pa.Table) -> bytes:
    spans = np.zeros(table.num_rows, np.dtype([("a", "?"), ("b", "<f8"), ("c", "?"), ("d", "<f8")]))
    assert spans.dtype.itemsize == SPAN_BYTES
    for is_set, seconds, name in (("a", "b", "start_s"), ("c", "d", "end_s")):
        column = table.column(name)
        spans[is_set] = column.is_valid().to_numpy()
        spans[seconds] = column.fill_null(0.0).to_numpy() + 0.0  # -0.0 becomes 0.0
    uris = table.column("source_uri").cast(pa.binary()).to_pylist()
    return row_digests(dataset, uris, spans.tobytes())


def _hex_column(ids: bytes) -> pa.Array:
    """Turn 16 bytes per row into a column of 32 hex digits, without a Python object per row."""
    num_rows = len(ids) // 16
    offsets = np.arange(num_rows + 1, dtype=np.int32) * 32
    return pa.StringArray.from_buffers(
        num_rows, pa.py_buffer(offsets), pa.py_buffer(binascii.hexlify(ids))
    )


@dataclass(frozen=True)
class _Row:
    """A row as a message names it."""

    position: int
    """In the plan as written, before duplicates are dropped."""
    place: str
    clip: str
    row_id: str


def _find_duplicates(store: Store, parts: Sequence[_Part]) -> list[tuple[_Row, _Row]]:
    """Return (later row, first row) for each row whose clip an earlier row has already."""
    if not parts:
        return []
    repeated = _repeated([part.hashes for part in parts])
    if not len(repeated):
        return []
    starts = np.cumsum([0, *(part.stored.num_rows for part in parts)])
    positions = np.concatenate(
        [
            start + np.flatnonzero(np.isin(part.hashes, repeated))
            for start, part in zip(starts[:-1].tolist(), parts, strict=True)
        ]
    )
    first_with: dict[str, _Row] = {}
    duplicates = []
    for row in _rows_at(store, parts, positions):
        # Equal hashes of 8 bytes mean little; equal ids of 16 mean one clip.
        first = first_with.setdefault(row.row_id, row)
        if first is not row:
            duplicates.append((row, first))
    return duplicates


def _repeated(hashes: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """Return, in order, what occurs more than once.

    Looks at one range of values after the other, since sorting all of 100 million rows at once
    would take 1.6 GB more.
    """
    num_ranges = max(1, sum(map(len, hashes)) // _SORTED_AT_ONCE)
    width = -(-(2**64) // num_ranges)
    found = []
    for number in range(num_ranges):
        first, last = number * width, min((number + 1) * width, 2**64) - 1
        inside = [
            some
            if num_ranges == 1
            else some[(some >= np.uint64(first)) & (some <= np.uint64(last))]
            for some in hashes
        ]
        ordered = np.sort(np.concatenate(inside))
        found.append(np.unique(ordered[1:][ordered[1:] == ordered[:-1]]))
    return np.concatenate(found)


def _rows_at(store: Store, parts: Sequence[_Part], positions: NDArray[np.int64]) -> Iterator[_Row]:
    start = 0
    for part in parts:
        stop = start + part.stored.num_rows
        inside = positions[np.searchsorted(positions, start) : np.searchsorted(positions, stop)]
        if len(inside):
            table = _read_part(store, part.stored).select(_OWN_COLUMNS)
            for position, values in zip(
                inside.tolist(), table.take(inside - start).to_pylist(), strict=True
            ):
                row = part.first_row + position - start
                place = f"source {part.source} row {row}"
                yield _Row(position, place, _clip_text(values), values[_ROW_ID.name])
        start = stop


def _clip_text(values: dict[str, Any]) -> str:
    start_s, end_s = values["start_s"], values["end_s"]
    uri = redact(values["source_uri"])
    if start_s is None and end_s is None:
        return uri
    ends = "end" if end_s is None else f"{end_s} s"
    return f"{uri} from {start_s or 0.0} s to {ends}"


def _explain_duplicates(duplicates: Sequence[tuple[_Row, _Row]]) -> str:
    later, first = duplicates[0]
    return (
        f"{first.place} and {later.place} are the same clip {later.clip}; in all, "
        f"{len(duplicates)} rows repeat an earlier one (rows count from 0). Its codes would stand "
        "in the dataset twice. Remove the repeated rows, or set on_duplicate: keep_first."
    )


def _without(store: Store, parts: Sequence[_Part], dropped: set[int]) -> list[_Part]:
    """Write the parts again that hold dropped rows. Nobody has read them yet."""
    kept = []
    start = 0
    positions = np.array(sorted(dropped), np.int64)
    for part in parts:
        stop = start + part.stored.num_rows
        inside = positions[np.searchsorted(positions, start) : np.searchsorted(positions, stop)]
        if len(inside):
            part = _without_rows(store, part, inside - start)
        if part.stored.num_rows:
            kept.append(part)
        else:
            store.delete(part.stored.key)
        start = stop
    return kept


def _without_rows(store: Store, part: _Part, rows: NDArray[np.int64]) -> _Part:
    keep = np.ones(part.stored.num_rows, bool)
    keep[rows] = False
    table = _read_part(store, part.stored).filter(pa.array(keep))
    num_problems = table.num_rows - table.column("problem").null_count
    stored = _store_part(store, part.stored.key, table)
    return _Part(stored, part.source, part.first_row, num_problems, part.hashes[keep])


def _read_part(store: Store, part: PlanPart, columns: list[str] | None = None) -> pa.Table:
    data = store.get(part.key)
    if hashlib.sha256(data).hexdigest() != part.sha256:
        raise CorruptOutput(
            f"{store.uri_of(part.key)}: its {len(data)} bytes are not the {part.size_bytes} that "
            "were planned (SHA-256 differs). Its rows would be other clips than those committed: "
            "restore the file, or plan again under a new output prefix."
        )
    return pq.read_table(io.BytesIO(data), columns=columns)


class PlanReader:
    """Reads a stored plan by rows, which are positions in it that never change.

    Holds a few parts in memory, and checks each against its hash when it is read.
    Every method raises ``CorruptOutput`` for a part that is not what was planned.
    """

    def __init__(self, store: Store, stored: StoredPlan) -> None:
        self._store = store
        self._parts = stored.parts
        counts = [part.num_rows for part in stored.parts]
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
        schema = base64.b64decode(stored.columns_schema)
        self._columns = pa.ipc.read_schema(pa.py_buffer(schema))
        self._cache: OrderedDict[int, pa.Table] = OrderedDict()

    @property
    def num_rows(self) -> int:
        return int(self._starts[-1])

    @property
    def num_parts(self) -> int:
        return len(self._parts)

    def part_of(self, row: int) -> int:
        """Return the index of the part that holds a row."""
        if not 0 <= row < self.num_rows:
            raise IndexError(f"row {row} is outside the plan's {self.num_rows} rows")
        return int(np.searchsorted(self._starts, row, side="right")) - 1

    def bounds(self, part_index: int) -> tuple[int, int]:
        """Return the first row of a part, and the row after its last."""
        return int(self._starts[part_index]), int(self._starts[part_index + 1])

    def identities(self, part_index: int) -> pa.Table:
        """Read ``row_id`` and ``source_uri`` of each row of a part afresh; nothing is kept."""
        return _read_part(self._store, self._parts[part_index], [_ROW_ID.name, "source_uri"])

    def items(self, part_index: int, rows: NDArray[np.int64] | None = None) -> list[WorkItem]:
        """Return the work items of some rows of one part, or of all of them.

        Args:
            part_index: which part.
            rows: positions in the plan, all within that part; the items come in their order.
        """
        start, stop = int(self._starts[part_index]), int(self._starts[part_index + 1])
        table = self._part(part_index).select(_OWN_COLUMNS)
        if rows is None:
            rows = np.arange(start, stop, dtype=np.int64)
        else:
            if len(rows) and not (start <= int(rows.min()) and int(rows.max()) < stop):
                raise IndexError(f"part {part_index} holds rows {start} to {stop - 1} only")
            table = table.take(pa.array(rows - start))
        columns = [table.column(name).to_pylist() for name in _OWN_COLUMNS]
        return [_item(row, *values) for row, *values in zip(rows.tolist(), *columns, strict=True)]

    def extras(self, rows: Sequence[int] | NDArray[np.int64]) -> pa.Table:
        """Return the carried columns of some rows, in their order.

        The schema is the same for every call: a column that a row's source does not have is null.
        """
        rows = np.asarray(rows, np.int64)
        if len(rows) and not (int(rows.min()) >= 0 and int(rows.max()) < self.num_rows):
            raise IndexError(f"some of {len(rows)} rows are outside the plan")
        if not self._columns.names:
            return _table_without_columns(len(rows))
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        pieces = []
        bounds = np.searchsorted(ordered, self._starts)
        for part_index in np.flatnonzero(np.diff(bounds)).tolist():
            inside = ordered[bounds[part_index] : bounds[part_index + 1]]
            table = self._part(part_index).take(pa.array(inside - self._starts[part_index]))
            pieces.append(self._with_all_columns(table))
        if not pieces:
            return self._columns.empty_table()
        back = np.empty(len(rows), np.int64)
        back[order] = np.arange(len(rows))
        return pa.concat_tables(pieces).take(pa.array(back))

    def iter_undone(
        self, done: Callable[[int, int], NDArray[np.bool_]]
    ) -> Iterator[list[WorkItem]]:
        """Yield the items that are not done, in the plan's order, in lists of bounded length.

        Args:
            done: ``done(start, stop)`` says of each row from start to stop (exclusive) whether
                it is done. A part that is wholly done is not even opened.
        """
        for part_index in range(len(self._parts)):
            start, stop = int(self._starts[part_index]), int(self._starts[part_index + 1])
            undone = start + np.flatnonzero(~done(start, stop))
            for at in range(0, len(undone), _ITEMS_AT_ONCE):
                yield self.items(part_index, undone[at : at + _ITEMS_AT_ONCE])

    def _part(self, part_index: int) -> pa.Table:
        table = self._cache.get(part_index)
        if table is None:
            table = self._cache[part_index] = _read_part(self._store, self._parts[part_index])
            if len(self._cache) > _CACHED_PARTS:
                self._cache.popitem(last=False)
        self._cache.move_to_end(part_index)
        return table

    def _with_all_columns(self, table: pa.Table) -> pa.Table:
        arrays = [
            table.column(field.name)
            if field.name in table.column_names
            else pa.nulls(table.num_rows, field.type)
            for field in self._columns
        ]
        return pa.Table.from_arrays(arrays, schema=self._columns)


def _item(
    row: int,
    row_id: str,
    source_uri: str,
    archive_uri: str | None,
    member_offset: int | None,
    member_size: int | None,
    start_s: float | None,
    end_s: float | None,
    problem: str | None,
) -> WorkItem:
    member = None
    if archive_uri is not None:
        assert member_offset is not None
        assert member_size is not None
        member = ArchiveMember(archive_uri, member_offset, member_size)
    return WorkItem(row, row_id, source_uri, member, start_s, end_s, problem=problem)


def _table_without_columns(num_rows: int) -> pa.Table:
    """A table of so many rows and no columns: Arrow drops the count when it builds one."""
    return pa.table({"row": pa.nulls(num_rows)}).select([])
