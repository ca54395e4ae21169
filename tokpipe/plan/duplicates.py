"""Rows of a plan that are the same clip."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokpipe.plan.stored import OWN_COLUMNS, ROW_ID, PlanPart, read_part, store_part
from tokpipe.storage.store import Store
from tokpipe.telemetry.redact import redact

_SORTED_AT_ONCE = 8 * 2**20


@dataclass(frozen=True)
class PlannedPart:
    """A part while the plan is being made."""

    stored: PlanPart
    source: int
    first_row: int
    """Position of its first row among the rows of its source."""
    num_problems: int
    hashes: NDArray[np.uint64]
    """The first 8 bytes of each row's id."""


@dataclass(frozen=True)
class _Row:
    """A row as a message names it."""

    position: int
    """In the plan as written, before duplicates are dropped."""
    place: str
    clip: str
    row_id: str


def find_duplicates(store: Store, parts: Sequence[PlannedPart]) -> list[tuple[_Row, _Row]]:
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


def _rows_at(
    store: Store, parts: Sequence[PlannedPart], positions: NDArray[np.int64]
) -> Iterator[_Row]:
    start = 0
    for part in parts:
        stop = start + part.stored.num_rows
        inside = positions[np.searchsorted(positions, start) : np.searchsorted(positions, stop)]
        if len(inside):
            table = read_part(store, part.stored).select(OWN_COLUMNS)
            for position, values in zip(
                inside.tolist(), table.take(inside - start).to_pylist(), strict=True
            ):
                row = part.first_row + position - start
                place = f"source {part.source} row {row}"
                yield _Row(position, place, _clip_text(values), values[ROW_ID.name])
        start = stop


def _clip_text(values: dict[str, Any]) -> str:
    start_s, end_s = values["start_s"], values["end_s"]
    uri = redact(values["source_uri"])
    if start_s is None and end_s is None:
        return uri
    ends = "end" if end_s is None else f"{end_s} s"
    return f"{uri} from {start_s or 0.0} s to {ends}"


def explain_duplicates(duplicates: Sequence[tuple[_Row, _Row]]) -> str:
    later, first = duplicates[0]
    return (
        f"{first.place} and {later.place} are the same clip {later.clip}; in all, "
        f"{len(duplicates)} rows repeat an earlier one (rows count from 0). Its codes would stand "
        "in the dataset twice. Remove the repeated rows, or set on_duplicate: keep_first."
    )


def without_rows(
    store: Store, parts: Sequence[PlannedPart], dropped: set[int]
) -> list[PlannedPart]:
    """Write the parts again that hold dropped rows. Nobody has read them yet."""
    kept = []
    start = 0
    positions = np.array(sorted(dropped), np.int64)
    for part in parts:
        stop = start + part.stored.num_rows
        inside = positions[np.searchsorted(positions, start) : np.searchsorted(positions, stop)]
        if len(inside):
            part = _filtered(store, part, inside - start)
        if part.stored.num_rows:
            kept.append(part)
        else:
            store.delete(part.stored.key)
        start = stop
    return kept


def _filtered(store: Store, part: PlannedPart, rows: NDArray[np.int64]) -> PlannedPart:
    keep = np.ones(part.stored.num_rows, bool)
    keep[rows] = False
    table = read_part(store, part.stored).filter(pa.array(keep))
    num_problems = table.num_rows - table.column("problem").null_count
    stored = store_part(store, part.stored.key, table)
    return PlannedPart(stored, part.source, part.first_row, num_problems, part.hashes[keep])
