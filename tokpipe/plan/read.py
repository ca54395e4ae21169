"""Reads a stored plan by row."""

import base64
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokpipe.config.sources import Source
from tokpipe.formats.checks import damaged, explained
from tokpipe.formats.layout import JOB_RECORD
from tokpipe.plan.stored import ROW_ID, StoredPlan, read_part
from tokpipe.sources.rows import items_of
from tokpipe.storage.store import Store
from tokpipe.types import WorkItem

_CACHED_PARTS = 3
_ITEMS_AT_ONCE = 4096


class PlanReader:
    """Reads a stored plan by row. A row is a position in the plan, and never changes.

    Caches a few parts, and checks the hash of each as it is read. Every method raises
    ``CorruptOutput`` for a part that is not what was planned.
    """

    def __init__(self, store: Store, stored: StoredPlan, sources: Sequence[Source] = ()) -> None:
        """``sources``: those of the job, whose settings the work items follow."""
        self._store = store
        self._sources = dict(enumerate(sources))
        self._parts = stored.parts
        self._starts = np.cumsum([0, *(part.num_rows for part in stored.parts)], dtype=np.int64)
        self.num_rows = int(self._starts[-1])
        try:
            schema = base64.b64decode(stored.columns_schema)
            self._columns = pa.ipc.read_schema(pa.py_buffer(schema))
        except (pa.ArrowException, OSError, ValueError) as error:
            problem = f"it does not describe the columns of the plan: {explained(error)}"
            raise damaged(store.uri_of(JOB_RECORD), problem) from error
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

    def identities(self, part_index: int) -> pa.Table:
        """Read ``row_id`` and ``source_uri`` of each row of a part, without caching."""
        return read_part(self._store, self._parts[part_index], [ROW_ID.name, "source_uri"])

    def items(self, rows: Sequence[int] | NDArray[np.int64]) -> list[WorkItem]:
        """Return the work items of ``rows``, which increase."""
        rows, items = np.asarray(rows, np.int64), list[WorkItem]()
        for index, inside, places in self.by_part(rows):
            source = self._sources.get(self._parts[index].source)
            items += items_of(self._part(index).take(places), rows[inside].tolist(), source)
        return items

    def extras(self, rows: Sequence[int] | NDArray[np.int64]) -> pa.Table:
        """Return the carried columns of ``rows``, in that order.

        The schema is always the same: a column that a row's source lacks is null.
        """
        order = np.argsort(rows, kind="stable")
        if not self._columns.names:
            # Arrow cannot build a table of rows without columns directly.
            return pa.table({"row": pa.nulls(len(order))}).select([])
        pieces = [self._columns.empty_table()]
        for index, _, places in self.by_part(np.asarray(rows, np.int64)[order]):
            table = self._part(index).take(places)
            names = [name for name in self._columns.names if name in table.column_names]
            pieces.append(table.select(names))
        try:  # promotion fills the columns that a part lacks with nulls
            table = pa.concat_tables(pieces, promote_options="default")
        except pa.ArrowException as error:
            problem = f"its columns are not those of the parts of the plan: {explained(error)}"
            raise damaged(self._store.uri_of(JOB_RECORD), problem) from error
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
