"""Finds and drops rows of a plan that are the same clip."""

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
    """A stored part, with what is needed only until the plan is complete."""

    stored: PlanPart
    source: int
    first_row: int
    """Position of its first row within its source."""
    num_problems: int
    hashes: NDArray[np.uint64]
    """The first 8 bytes of each row's id."""


def count_problems(rows: pa.Table) -> int:
    return int(rows.num_rows - rows.column("problem").null_count)


@dataclass(frozen=True)
class _Row:
    """A row as a message names it."""

    position: int
    """In the plan as written, before duplicates are dropped."""
    place: str
    clip: str
    row_id: str


def find_duplicates(store: Store, parts: Sequence[PlannedPart]) -> list[tuple[_Row, _Row]]:
    """Return (later row, first row) for each row that repeats the clip of an earlier one."""
    repeated = _repeated([part.hashes for part in parts])
    if not len(repeated):
        return []
    ends = np.cumsum([part.stored.num_rows for part in parts])
    positions = np.concatenate(
        [
            end - part.stored.num_rows + np.flatnonzero(np.isin(part.hashes, repeated))
            for end, part in zip(ends, parts, strict=True)
        ]
    )
    first_with: dict[str, _Row] = {}
    duplicates = []
    for row in _rows_at(store, parts, positions):
        # Hashes of 8 bytes may collide; equal ids of 16 bytes mean the same clip.
        first = first_with.setdefault(row.row_id, row)
        if first is not row:
            duplicates.append((row, first))
    return duplicates


def _repeated(hashes: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """Return, in order, the values that occur more than once.

    Sorts one range of values at a time: sorting 100 million rows at once takes 1.6 GB more.
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
    for part, start, inside in _by_part(parts, positions):
        if not len(inside):
            continue
        table = read_part(store, part.stored, OWN_COLUMNS).take(pa.array(inside))
        for offset, values in zip(inside.tolist(), table.to_pylist(), strict=True):
            place = f"source {part.source} row {part.first_row + offset}"
            yield _Row(start + offset, place, _clip_text(values), values[ROW_ID.name])


def _by_part(
    parts: Sequence[PlannedPart], positions: NDArray[np.int64]
) -> Iterator[tuple[PlannedPart, int, NDArray[np.int64]]]:
    """Yield each part, its first position, and the sorted positions in it, counted from there."""
    start = 0
    for part in parts:
        stop = start + part.stored.num_rows
        first, last = np.searchsorted(positions, [start, stop])
        yield part, start, positions[first:last] - start
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
        f"{len(duplicates)} rows repeat an earlier one (rows count from 0). The dataset would hold "
        "its codes twice. Remove the repeated rows, or set on_duplicate: keep_first."
    )


def without_rows(
    store: Store, parts: Sequence[PlannedPart], dropped: set[int]
) -> list[PlannedPart]:
    """Rewrite the parts that hold dropped rows. Nobody has read them yet."""
    kept = []
    for part, _, inside in _by_part(parts, np.array(sorted(dropped), np.int64)):
        if len(inside):
            keep = np.ones(part.stored.num_rows, bool)
            keep[inside] = False
            table = read_part(store, part.stored).filter(pa.array(keep))
            stored = store_part(store, part.stored.key, table)
            part = PlannedPart(
                stored, part.source, part.first_row, count_problems(table), part.hashes[keep]
            )
        if part.stored.num_rows:
            kept.append(part)
        else:
            store.delete(part.stored.key)
    return kept
