"""Finds and drops rows of a plan that are the same clip."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
    first_with: dict[str, _Row] = {}
    duplicates = []
    start = 0
    for part in parts:
        inside = np.flatnonzero(np.isin(part.hashes, repeated))
        for row in _rows_at(store, part, start, inside) if len(inside) else ():
            # Hashes of 8 bytes may collide; equal ids of 16 bytes mean the same clip.
            first = first_with.setdefault(row.row_id, row)
            if first is not row:
                duplicates.append((row, first))
        start += part.stored.num_rows
    return duplicates


def _rows_at(
    store: Store, part: PlannedPart, start: int, inside: NDArray[np.int64]
) -> Iterator[_Row]:
    table = read_part(store, part.stored, OWN_COLUMNS).take(pa.array(inside))
    for offset, values in zip(inside.tolist(), table.to_pylist(), strict=True):
        place = f"source {part.source} row {part.first_row + offset}"
        yield _Row(start + offset, place, _clip_text(values), values[ROW_ID.name])


def _repeated(hashes: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """Return, in order, the values that occur more than once.

    Sorts one range of values at a time: sorting 100 million rows at once takes 1.6 GB more.
    """
    num_ranges = max(1, sum(map(len, hashes)) // _SORTED_AT_ONCE)
    width = -(-(2**64) // num_ranges)
    found = []
    for start in range(0, 2**64, width):
        first, last = np.uint64(start), np.uint64(min(start + width, 2**64) - 1)
        ordered = np.sort(
            np.concatenate([some[(some >= first) & (some <= last)] for some in hashes])
        )
        found.append(np.unique(ordered[1:][ordered[1:] == ordered[:-1]]))
    return np.concatenate(found)


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
    positions = np.array(sorted(dropped), np.int64)
    kept = []
    start = 0
    for part in parts:
        stop = start + part.stored.num_rows
        first, last = np.searchsorted(positions, [start, stop])
        if first < last:
            keep = np.ones(part.stored.num_rows, bool)
            keep[positions[first:last] - start] = False
            table = read_part(store, part.stored).filter(pa.array(keep))
            part = replace(
                part,
                stored=store_part(store, part.stored.key, table),
                num_problems=count_problems(table),
                hashes=part.hashes[keep],
            )
        if part.stored.num_rows:
            kept.append(part)
        else:
            store.delete(part.stored.key)
        start = stop
    return kept
