"""The stored plan, as an audit sees it: its parts, and the clip that each row must produce."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokpipe.audit.report import Findings
from tokpipe.errors import CorruptOutput, NotFound
from tokpipe.formats.checks import damaged
from tokpipe.formats.job_record import JobRecord
from tokpipe.formats.layout import JOB_RECORD
from tokpipe.identity.ids import clip_id, digest
from tokpipe.plan import PlanReader, StoredPlan
from tokpipe.storage.store import Store
from tokpipe.telemetry.redact import redact
from tokpipe.types import ClipRef

_KEPT_PARTS = 8
"""Parts of about 6 MB in memory. The manifest nearly follows the plan, so few are in use."""


def check_plan(store: Store, record: JobRecord, plan: StoredPlan, findings: Findings) -> None:
    """Read every part of the plan once. Holds 8 bytes per row, to find repeated ids."""
    where = store.uri_of(JOB_RECORD)
    if plan.plan_id != digest([part.sha256 for part in plan.parts]):
        findings.add("plan", where, f"{where}: its plan_id does not match the parts it names")
    if not record.num_rows == plan.num_rows == sum(part.num_rows for part in plan.parts):
        problem = f"num_rows={record.num_rows} is not the sum of the plan's parts"
        findings.add("plan", where, f"{where}: {problem}")
    reader = PlanReader(store, plan)
    hashes: list[NDArray[np.uint64]] = [np.zeros(0, np.uint64)]
    for index, part in enumerate(plan.parts):
        uri = store.uri_of(part.key)
        try:
            table = reader.identities(index)
        except (CorruptOutput, NotFound, pa.ArrowException) as error:
            findings.add("plan", uri, error)
            continue
        ids = bytes.fromhex("".join(table.column("row_id").to_pylist()))
        hashes.append(np.frombuffer(ids, np.dtype("<u8"))[::2].copy())  # the first 8 bytes of each
    every = np.sort(np.concatenate(hashes))
    if repeated := int((every[1:] == every[:-1]).sum()):
        findings.add(
            "plan",
            where,
            f"{where}: {repeated:,} rows of its plan repeat an earlier row's id, so their clips "
            "are in the dataset twice. Tokenize again to a new output prefix",
            count=repeated,
        )


class PlannedClips:
    """Compares clips with what the plan's rows must produce, with a few parts in memory."""

    def __init__(self, store: Store, plan: StoredPlan, sampling: dict[str, Any]) -> None:
        self._reader = PlanReader(store, plan)
        try:
            cut = sampling["max_clip_frames"], sampling["fps"] and float(sampling["fps"])
            self._cut: tuple[int, float | None] = int(cut[0]), cut[1]
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(store.uri_of(JOB_RECORD), "its job has no sampling") from error
        self._part = lru_cache(_KEPT_PARTS)(self._read_part)

    def mismatches(self, refs: Sequence[ClipRef]) -> Iterator[tuple[ClipRef, str]]:
        """Yield each clip that contradicts its row, and what differs.

        Skips rows outside the plan and rows of unreadable parts, which are reported elsewhere.
        """
        inside = [ref for ref in refs if 0 <= ref.row < self._reader.num_rows]
        inside.sort(key=lambda ref: ref.row)
        rows = np.fromiter((ref.row for ref in inside), np.int64, len(inside))
        for index, some, places in self._reader.by_part(rows):
            if (table := self._part(index)) is not None:
                yield from self._compare(inside[some], table.take(places))

    def _compare(self, refs: list[ClipRef], planned: pa.Table) -> Iterator[tuple[ClipRef, str]]:
        columns = (planned.column(name).to_pylist() for name in ("row_id", "source_uri"))
        for ref, row_id, uri in zip(refs, *columns, strict=True):
            wanted = clip_id(row_id, ref.segment, ref.num_segments, *self._cut)
            if ref.clip_id != wanted:
                yield ref, f"clip id {ref.clip_id}, but the plan has {wanted}"
            if ref.source_uri != uri and redact(ref.source_uri) != redact(uri):  # it is masked
                yield ref, f"source {ref.source_uri}, but the plan has {uri}"

    def _read_part(self, index: int) -> pa.Table | None:
        try:
            return self._reader.identities(index).combine_chunks()
        except (CorruptOutput, NotFound, pa.ArrowException):  # check_plan has reported it
            return None
