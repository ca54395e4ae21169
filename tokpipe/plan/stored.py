"""A stored plan: its description in ``job.json``, its Parquet files, and how rows are read."""

import base64
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter

from tokpipe.config.sources import Source
from tokpipe.formats.checks import as_damage, damaged, sha256
from tokpipe.formats.job_record import JobRecord
from tokpipe.formats.layout import JOB_RECORD
from tokpipe.formats.manifest import Growth
from tokpipe.formats.tables import UNREADABLE, check_texts, from_parquet
from tokpipe.identity import digest
from tokpipe.sources.rows import ROW_SCHEMA, items_of
from tokpipe.storage.left_out import LeftOut
from tokpipe.storage.store import Store
from tokpipe.types import Count, Sha256, WorkItem

ROW_ID = pa.field("row_id", pa.string(), nullable=False)
_OWN = [ROW_ID, *ROW_SCHEMA]
OWN_COLUMNS = [one.name for one in _OWN]
PURGED = 2**64 - 1  # Version of a row that was purged
_CACHED_PARTS = 3
_ITEMS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class PlanPart:
    """One file of the plan. All of its rows come from one source."""

    key: Annotated[str, Field(pattern=r"^plan/[A-Za-z0-9_-]+/[0-9]+\.parquet$")]
    num_rows: Count
    sha256: Sha256
    size_bytes: Count
    source: Count = 0  # Position of its source in the job; unknown in older plans, as versions are


@dataclass(frozen=True, slots=True)
class StoredPlan:
    """What ``job.json`` records of a plan: enough to find, check and read every row."""

    plan_id: str  # Hash of the parts' hashes: the same id means the same rows in the same order
    parts: tuple[PlanPart, ...]
    num_rows: Count
    num_problems: Count  # Rows found unusable while planning; they count in ``num_rows``
    num_duplicates: Count  # Rows dropped because an earlier row is the same clip
    duplicate_examples: tuple[str, ...]
    columns: dict[str, str]  # Carried from the sources, with the Arrow type as people read it
    columns_schema: str  # The same as a serialized Arrow schema in base64, for ``PlanReader``
    left_out: LeftOut = field(default_factory=LeftOut)
    """What the sources found and did not take; earlier versions did not count it."""

    @classmethod
    def of(cls, record: JobRecord, growth: Iterable[Growth]) -> "StoredPlan":
        """Return the plan of an output, with what joined it since it was written."""
        plan = cls.from_json(record.plan)
        for one in growth:
            plan = plan.grown(cls.from_json(one.plan))
        return plan

    def grown(self, more: "StoredPlan") -> "StoredPlan":
        """Return this plan with the rows of another one after its own."""
        num_problems = self.num_problems + more.num_problems
        whole = self.with_parts((*self.parts, *more.parts), num_problems)
        return replace(whole, left_out=more.left_out)  # the later listing of all sources

    def with_parts(self, parts: Iterable[PlanPart], num_problems: int) -> "StoredPlan":
        """Return this plan with other rows."""
        parts = tuple(parts)
        num_rows = sum(part.num_rows for part in parts)
        own: dict[str, Any] = {"num_rows": num_rows, "num_problems": num_problems}
        return replace(self, plan_id=plan_id_of(parts), parts=parts, **own)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "StoredPlan":
        """Reverse ``asdict``."""
        with as_damage(JOB_RECORD, "it does not describe a stored plan", ValueError):
            return _STORED.validate_python(value)


_STORED = TypeAdapter(StoredPlan)


def plan_id_of(parts: Iterable[PlanPart]) -> str:
    return digest([part.sha256 for part in parts])


def row_ids(rows: pa.Table) -> NDArray[np.uint64]:
    """Return (rows, 2) halves of the rows' ids."""
    ids = bytes.fromhex("".join(rows.column(ROW_ID.name).to_pylist()))
    return np.frombuffer(ids, "<u8").reshape(-1, 2)


def tombstones(ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the ids that rows with these ``ids`` have once they are purged."""
    hashed = b"".join(hashlib.sha256(one.tobytes()).digest()[:16] for one in ids)
    return np.frombuffer(hashed, "<u8").reshape(-1, 2)


def purged(rows: pa.Table, places: pa.Array) -> pa.Table:
    """Leave only a hash of their id in some rows of a plan; the same table if it is so already."""
    versions = rows.column("source_version")
    is_there = np.isin(np.arange(rows.num_rows), places)
    is_there &= versions.fill_null(0).to_numpy() != PURGED
    if not is_there.any():
        return rows
    ids = np.where(is_there[:, None], tombstones(row_ids(rows)), row_ids(rows))
    # Takes null where it is masked, from columns of any type.
    left = rows.take(pa.array(np.arange(rows.num_rows), mask=is_there))
    values = {
        ROW_ID.name: pa.array([one.tobytes().hex() for one in ids]),
        "source_uri": left.column("source_uri").fill_null(""),
        "source_version": pc.if_else(is_there, pa.scalar(PURGED, versions.type), versions),
    }
    names = rows.column_names
    return pa.table([values.get(name, left.column(name)) for name in names], names=names)


def store_part(store: Store, key: str, table: pa.Table, source: int) -> PlanPart:
    sink = io.BytesIO()
    # Parquet would try a dictionary for unique texts, and then drop it.
    unique = {ROW_ID.name, "source_uri", "source_version"}
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
    return PlanPart(key, table.num_rows, sha256(data), len(data), source)


def read_part(store: Store, part: PlanPart, columns: list[str] | None = None) -> pa.Table:
    data = store.get_range(part.key, 0, part.size_bytes + 1)
    if sha256(data) != part.sha256:
        found = f"its {len(data)} bytes are not those {part.size_bytes} planned (SHA-256 differs)"
        raise damaged(store.uri_of(part.key), found, "It lists the clips to make")
    table = from_parquet(store.uri_of(part.key), data, "part of a plan", columns=columns)
    known = [(one, table.schema.field(one.name)) for one in _OWN if one.name in table.column_names]
    if table.num_rows != part.num_rows or any(a.type != b.type for a, b in known) or not known:
        raise damaged(store.uri_of(part.key), "its rows or columns are not those of the plan")
    own = table.select([one.name for one, _ in known])
    check_texts(store.uri_of(part.key), own, row_id="^[0-9a-f]{32}$")
    return table


class PlanReader:
    """Reads a stored plan by row. A row is a position in the plan, and never changes.

    Caches a few parts, and checks the hash of each as it is read. Every method raises
    ``CorruptOutput`` for a part that is not what was planned.
    """

    def __init__(self, store: Store, stored: StoredPlan, sources: Sequence[Source] = ()) -> None:
        """``sources``: those of the job, whose settings the work items follow."""
        self._sources = dict(enumerate(sources))
        self._parts = stored.parts
        self._starts = np.cumsum([0, *(part.num_rows for part in stored.parts)], dtype=np.int64)
        self.num_rows = int(self._starts[-1])
        self._uri, found = store.uri_of(JOB_RECORD), "it does not describe the columns of the plan"
        with as_damage(self._uri, found, *UNREADABLE, ValueError):
            schema = base64.b64decode(stored.columns_schema)
            self._columns = pa.ipc.read_schema(pa.py_buffer(schema))
        self._part = lru_cache(_CACHED_PARTS)(lambda index: read_part(store, stored.parts[index]))

    def by_part(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, slice, pa.Array]]:
        """Yield each part that holds some of ``rows``, which increase: its index, where in ``rows``
        they are, and their places in the part."""
        if len(rows) and not 0 <= rows[0] <= rows[-1] < self.num_rows:
            raise IndexError(f"some of {len(rows)} rows are outside the plan's {self.num_rows}")
        bounds = np.searchsorted(rows, self._starts)
        for index in np.flatnonzero(np.diff(bounds)).tolist():
            inside = slice(bounds[index], bounds[index + 1])
            yield index, inside, pa.array(rows[inside] - self._starts[index])

    def items(self, rows: Sequence[int] | NDArray[np.int64]) -> list[WorkItem]:
        """Return the work items of ``rows``, which increase."""
        rows, items = np.asarray(rows, np.int64), list[WorkItem]()
        for index, inside, places in self.by_part(rows):
            source = self._sources.get(self._parts[index].source)
            items += items_of(self._part(index).take(places), rows[inside].tolist(), source)
        return items

    def extras(self, rows: Sequence[int] | NDArray[np.int64]) -> pa.Table:
        """Return all carried columns of ``rows``, in that order; null where a source lacks one."""
        order = np.argsort(rows, kind="stable")
        if not self._columns.names:
            # Without reading the plan; and Arrow cannot build a table of rows without columns.
            return pa.table({"row": pa.nulls(len(order))}).select([])
        pieces = [self._columns.empty_table()]
        for index, _, places in self.by_part(np.asarray(rows, np.int64)[order]):
            table = self._part(index).take(places)
            names = [name for name in self._columns.names if name in table.column_names]
            pieces.append(table.select(names))
        found = "its columns are not those of the parts of the plan"
        with as_damage(self._uri, found, pa.ArrowException):
            table = pa.concat_tables(pieces, promote_options="default")  # adds nulls
        return table.take(pa.array(np.argsort(order)))

    def iter_undone(
        self, done: Callable[[int, int], NDArray[np.bool_]]
    ) -> Iterator[list[WorkItem]]:
        """Yield the items that are not done, in plan order, in lists of at most 4,096.

        ``done(start, stop)`` returns a boolean per row from start to stop (exclusive). A part
        whose rows are all done is not opened.
        """
        for start, stop in pairwise(self._starts.tolist()):
            undone = start + np.flatnonzero(~done(start, stop))
            for at in range(0, len(undone), _ITEMS_AT_ONCE):
                yield self.items(undone[at : at + _ITEMS_AT_ONCE])
