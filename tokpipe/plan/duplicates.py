"""Finds and drops rows of a plan that are the same clip."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokpipe.plan.stored import OWN_COLUMNS, ROW_ID, PlanPart, read_part, store_part
from tokpipe.storage.store import Store
from tokpipe.telemetry.redact import redact


class PlannedPart(NamedTuple):
    """A stored part, with what is needed only until the plan is complete."""

    stored: PlanPart
    first_row: int  # Position of its first row within its source
    num_problems: int
    hashes: NDArray[np.uint64]  # The first 8 bytes of each row's id


def store_planned(
    store: Store, key: str, rows: pa.Table, source: int, first_row: int, hashes: NDArray[np.uint64]
) -> PlannedPart:
    num_problems = rows.num_rows - rows.column("problem").null_count
    return PlannedPart(store_part(store, key, rows, source), first_row, num_problems, hashes)


def find_duplicates(store: Store, parts: Sequence[PlannedPart]) -> dict[int, str]:
    """Return the rows that repeat an earlier one, in order: position in the plan, and a text."""
    hashes = np.concatenate([part.hashes for part in parts])
    hashes.sort()
    repeated = hashes[1:][hashes[1:] == hashes[:-1]]
    first_with: dict[str, str] = {}
    duplicates = {}
    start = 0
    for part in parts:
        inside = np.flatnonzero(np.isin(part.hashes, repeated))
        if len(inside):
            rows = read_part(store, part.stored, OWN_COLUMNS).take(pa.array(inside)).to_pylist()
            for offset, row in zip(inside.tolist(), rows, strict=True):
                place = f"source {part.stored.source} row {part.first_row + offset}"
                # Hashes of 8 bytes may collide; equal ids of 16 bytes mean the same clip.
                first = first_with.setdefault(row[ROW_ID.name], place)
                if first != place:
                    duplicates[start + offset] = f"{place} repeats {first}: {_clip_text(row)}"
        start += part.stored.num_rows
    return duplicates


def _clip_text(values: dict[str, Any]) -> str:
    start_s, end_s = values["start_s"], values["end_s"]
    uri = redact(values["source_uri"])
    if start_s is None and end_s is None:
        return uri
    ends = "end" if end_s is None else f"{end_s} s"
    return f"{uri} from {start_s or 0.0} s to {ends}"


def without_rows(
    store: Store, parts: Sequence[PlannedPart], dropped: Collection[int]
) -> list[PlannedPart]:
    """Rewrite the parts that hold dropped rows. Nobody has read them yet."""
    is_kept = np.ones(sum(part.stored.num_rows for part in parts), bool)
    is_kept[np.fromiter(dropped, np.int64)] = False
    kept = []
    start = 0
    for part in parts:
        keep = is_kept[start : start + part.stored.num_rows]
        start += len(keep)
        if not keep.any():
            store.delete(part.stored.key)
        elif keep.all():
            kept.append(part)
        else:
            table = read_part(store, part.stored).filter(pa.array(keep))
            rest = table, part.stored.source, part.first_row, part.hashes[keep]
            kept.append(store_planned(store, part.stored.key, *rest))
    return kept
