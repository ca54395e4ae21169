"""The stored plan as an audit sees it: its parts, and which clip each row must give."""

from __future__ import annotations

import binascii
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tokpipe.audit.findings import Findings
from tokpipe.errors import CorruptOutput, NotFound
from tokpipe.formats.job_record import JobRecord
from tokpipe.identity.ids import clip_id, digest
from tokpipe.plan import PlanReader, StoredPlan
from tokpipe.storage.store import Store
from tokpipe.types import ClipRef

_KEPT_PARTS = 8
"""The manifest nearly follows the plan, so few parts are in use at a time: about 6 MB each."""


def check_plan(store: Store, record: JobRecord, plan: StoredPlan, findings: Findings) -> None:
    """Read every part of the plan once. Holds 8 bytes per row, to see that no id stands twice."""
    where = store.uri_of("job.json")
    if plan.plan_id != digest([part.sha256 for part in plan.parts]):
        findings.add("plan", where, f"{where}: its plan_id is not that of the parts it names")
    if not record.num_rows == plan.num_rows == sum(part.num_rows for part in plan.parts):
        findings.add(
            "plan", where, f"{where}: num_rows={record.num_rows} is not the sum of the plan's parts"
        )
    reader = PlanReader(store, plan)
    hashes: list[NDArray[np.uint64]] = []
    for index, part in enumerate(plan.parts):
        uri = store.uri_of(part.key)
        try:
            table = reader.identities(index)
        except (CorruptOutput, NotFound, pa.ArrowException) as error:
            findings.add("plan", uri, error)
            continue
        if table.num_rows != part.num_rows:
            findings.add(
                "plan", uri, f"{uri}: has {table.num_rows} rows where {part.num_rows} were planned"
            )
        hashes += (_first_8_bytes(chunk) for chunk in table.column("row_id").chunks)
    every = np.sort(np.concatenate(hashes)) if hashes else np.zeros(0, np.uint64)
    if repeated := int((every[1:] == every[:-1]).sum()):
        findings.add(
            "plan",
            where,
            f"{where}: {repeated:,} rows of its plan repeat an earlier row's id. Their clips stand "
            "in the dataset twice: tokenize again to a new output prefix",
            count=repeated,
        )


def _first_8_bytes(ids: pa.StringArray) -> NDArray[np.uint64]:
    """(n,) of n ids of 32 hex digits."""
    text = b"".join(ids.cast(pa.binary()).to_pylist())
    return np.array(np.frombuffer(binascii.unhexlify(text), np.dtype("<u8"))[::2], np.uint64)


class PlannedClips:
    """Says of clips whether they are those that the plan's rows must give.

    Compares whole columns, part by part, and keeps few parts: no object per clip remains.
    """

    def __init__(self, store: Store, plan: StoredPlan, sampling: dict[str, Any]) -> None:
        self._reader = PlanReader(store, plan)
        self._max_clip_frames: int = sampling["max_clip_frames"]
        self._fps: float | None = sampling["fps"]
        self._parts: OrderedDict[int, pa.Table | None] = OrderedDict()

    def mismatches(self, refs: Sequence[ClipRef]) -> Iterator[tuple[ClipRef, str]]:
        """Yield each clip that contradicts its row, and what is wrong with it.

        Rows outside the plan are left out: counting them off has told of them. So are rows of
        parts that cannot be read.
        """
        inside = [ref for ref in refs if 0 <= ref.row < self._reader.num_rows]
        if not inside:
            return
        rows = np.fromiter((ref.row for ref in inside), np.int64, len(inside))
        order = np.argsort(rows, kind="stable")
        at = 0
        while at < len(order):
            index = self._reader.part_of(int(rows[order[at]]))
            start, stop = self._reader.bounds(index)
            end = int(np.searchsorted(rows, stop, sorter=order))
            chosen = order[at:end]
            table = self._part(index)
            if table is not None and table.num_rows == stop - start:
                planned = table.take(pa.array(rows[chosen] - start))
                yield from self._compared([inside[i] for i in chosen.tolist()], planned)
            at = end

    def _compared(self, refs: list[ClipRef], planned: pa.Table) -> Iterator[tuple[ClipRef, str]]:
        row_ids = planned.column("row_id")
        cut = [i for i, ref in enumerate(refs) if ref.num_segments > 1]
        expected: Any = row_ids
        if cut:
            ids = row_ids.to_pylist()
            for i in cut:
                ref = refs[i]
                ids[i] = clip_id(
                    ids[i], ref.segment, ref.num_segments, self._max_clip_frames, self._fps
                )
            expected = pa.array(ids, pa.string())
        for found, wanted, what in (
            ([ref.clip_id for ref in refs], expected, "clip id"),
            ([ref.source_uri for ref in refs], planned.column("source_uri"), "source"),
        ):
            equal = pc.equal(pa.array(found, pa.string()), wanted)
            if pc.all(equal, skip_nulls=False).as_py():
                continue
            wrong = ~equal.fill_null(False).to_numpy(zero_copy_only=False)
            for i in np.flatnonzero(wrong).tolist():
                yield refs[i], f"{what} {found[i]}, where the plan has {wanted[i].as_py()}"

    def _part(self, index: int) -> pa.Table | None:
        if index not in self._parts:
            try:
                self._parts[index] = self._reader.identities(index).combine_chunks()
            except (CorruptOutput, NotFound, pa.ArrowException):  # which check_plan has told
                self._parts[index] = None
            if len(self._parts) > _KEPT_PARTS:
                self._parts.popitem(last=False)
        self._parts.move_to_end(index)
        return self._parts[index]
