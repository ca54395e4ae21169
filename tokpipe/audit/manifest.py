"""Compares the manifest, entry by entry, with the stored plan, and continues after defects."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from tokpipe.audit.findings import Findings
from tokpipe.audit.leftovers import Listing
from tokpipe.errors import CorruptOutput, NotFound
from tokpipe.formats.checks import damaged
from tokpipe.formats.layout import JOB_RECORD, checkpoint_key, entry_key
from tokpipe.formats.manifest import CommittedRows, ManifestEntry, ManifestState, count_entries
from tokpipe.formats.manifest.checkpoint import read_checkpoint, record_of
from tokpipe.formats.manifest.log import READ_AHEAD, read_entry
from tokpipe.identity import clip_id
from tokpipe.plan import PlanReader, StoredPlan
from tokpipe.plan.stored import PlanPart, plan_id_of, read_part, row_ids
from tokpipe.storage.read_ahead import read_ahead
from tokpipe.storage.store import Store
from tokpipe.telemetry.redact import redact
from tokpipe.types import ClipRef, Receipt

_SHORTCUT = "It is only a shortcut: delete its .json and .parquet, and entries are read instead."
_KEPT_PARTS = 8  # Of about 6 MB each. The manifest nearly follows the plan, so few are in use
_IDENTITY = ["row_id", "source_uri"]
_UNREADABLE = CorruptOutput, NotFound, pa.ArrowException  # What reading a part of a plan raises


def check_named(where: str, plan: StoredPlan, num_rows: int, findings: Findings) -> None:
    """Check what an object says of the plan that it names."""
    if plan.plan_id != plan_id_of(plan.parts):
        findings.add("plan", where, f"{where}: its plan_id does not match the parts it names")
    if not num_rows == plan.num_rows == sum(part.num_rows for part in plan.parts):
        problem = f"num_rows={num_rows} is not the sum of the plan's parts"
        findings.add("plan", where, f"{where}: {problem}")


def check_plan(store: Store, parts: Iterable[PlanPart], findings: Findings) -> None:
    """Read every part of the plan once. Holds 8 bytes per row, to find repeated ids."""
    where, hashes = store.uri_of(JOB_RECORD), [np.empty(0, np.uint64)]
    for part in parts:
        try:
            hashes.append(row_ids(read_part(store, part, _IDENTITY))[:, 0].copy())
        except _UNREADABLE as error:
            findings.add("plan", store.uri_of(part.key), error)
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
        self._store, self.plan = store, plan
        self._reader = PlanReader(store, plan)
        try:
            cut = sampling["max_clip_frames"], sampling["fps"] and float(sampling["fps"])
            self._cut: tuple[int, float | None] = int(cut[0]), cut[1]
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(store.uri_of(JOB_RECORD), "its job has no sampling") from error
        self._part = lru_cache(_KEPT_PARTS)(self._read_part)

    def grow(self, more: StoredPlan) -> None:
        self.plan = self.plan.grown(more)
        self._reader = PlanReader(self._store, self.plan)

    def mismatches(self, refs: Sequence[ClipRef]) -> Iterator[tuple[ClipRef, str]]:
        """Yield each clip that contradicts its row, and what differs.

        Skips rows outside the plan and rows of unreadable parts, which are reported elsewhere.
        """
        inside = [ref for ref in refs if 0 <= ref.row < self._reader.num_rows]
        inside.sort(key=lambda ref: ref.row)
        rows = np.fromiter((ref.row for ref in inside), np.int64, len(inside))
        for index, some, places in self._reader.by_part(rows):
            if (part := self._part(index)) is None:
                continue
            columns = (part.column(name).take(places).to_pylist() for name in _IDENTITY)
            for ref, row_id, uri in zip(inside[some], *columns, strict=True):
                wanted = clip_id(row_id, ref.segment, ref.num_segments, *self._cut)
                if ref.clip_id != wanted:
                    yield ref, f"clip id {ref.clip_id}, but the plan has {wanted}"
                if ref.source_uri != uri and redact(ref.source_uri) != redact(uri):  # it is masked
                    yield ref, f"source {ref.source_uri}, but the plan has {uri}"

    def _read_part(self, index: int) -> pa.Table | None:
        try:
            return read_part(self._store, self.plan.parts[index], _IDENTITY).combine_chunks()
        except _UNREADABLE:  # check_plan reports it
            return None


class ManifestAudit:
    """What the manifest says, entry by entry, and what contradicts it.

    Holds two bits per plan row, and two keys and one row of a table per shard. ``clips`` is None
    if the plan cannot be read.
    """

    def __init__(
        self, store: Store, num_rows: int, clips: PlannedClips | None, findings: Findings
    ) -> None:
        self._store, self._num_rows = store, num_rows
        self._clips, self._findings = clips, findings
        self.state = ManifestState(CommittedRows(num_rows))
        self._rejected = CommittedRows(num_rows)
        self.listed: dict[str, int] = {}  # Key of each listed object, and the entry that lists it
        self._clips_in = dict[str, int]()  # A sum over the clips of each listed shard
        self._redacted = dict[ClipRef, str]()  # Clips without an id, and an entry that has them

    def entries(self, listing: Listing) -> Iterator[ManifestEntry]:
        """Yield every readable entry after checking it, and check all checkpoints."""
        numbers: Sequence[int] = listing.entries
        try:
            count_entries(self._store)  # without a gap, a listing that has one lags behind
            numbers = range(max(numbers, default=-1) + 1)
        except CorruptOutput as error:
            if not numbers and not listing.checkpoints:
                self._findings.add("entry_missing", self._store.uri_of(entry_key(0)), error)
        end = after = 0  # after the last number, and after the last entry that could be read
        for seq, found in read_ahead(self._read, numbers, READ_AHEAD):
            self._check_gap(end, seq, "later entries of the manifest exist")
            self._check_checkpoint(seq, listing)
            uri = self._store.uri_of(entry_key(seq))
            if isinstance(found, CorruptOutput):
                self._findings.add("entry_damaged", uri, found)
            else:
                if seq == after:
                    try:
                        self.state.tail.check(self._store, found)
                    except CorruptOutput as error:
                        self._findings.add("entry_damaged", uri, error)
                self._add(uri, found)
                yield found
                after = seq + 1
            end = seq + 1
        self._check_checkpoint(end, listing)
        if listing.checkpoints:
            last = max(listing.checkpoints)
            self._check_gap(end, last, f"a checkpoint sums up {last} entries")

    def _check_gap(self, end: int, seq: int, reason: str) -> None:
        if (missing := seq - end) > 0:
            it = "it is" if missing == 1 else f"it and the {missing - 1} entries after it are"
            uri = self._store.uri_of(entry_key(end))
            problem = f"{it} missing, although {reason}"
            self._findings.add_damage("entry_missing", uri, problem, count=missing)

    def _read(self, seq: int) -> tuple[int, ManifestEntry | CorruptOutput]:
        try:
            return seq, read_entry(self._store, seq)
        except CorruptOutput as error:
            return seq, error

    def _add(self, uri: str, entry: ManifestEntry) -> None:
        for withdrawn in entry.reopened:
            self._reopen(uri, withdrawn.ref)
        for receipt in entry.shards:
            self._list(uri, entry.seq, receipt)
        if entry.replaced:
            self._replace(uri, entry)
        self._settle(uri, entry)
        for rejection in entry.rejected:
            with suppress(CorruptOutput):  # reported by _settle
                self._rejected.add(rejection.ref)
        try:
            self.state.count(entry)
            if entry.growth is not None:
                self._rejected.grow(entry.growth.num_rows)
                more = StoredPlan.from_json(entry.growth.plan)
                check_named(uri, more, entry.growth.num_rows, self._findings)
                if self._clips is not None:
                    self._clips.grow(more)
        except CorruptOutput as error:
            self._findings.add("entry_damaged" if entry.replaced else "plan", uri, error)

    def _list(self, uri: str, seq: int, receipt: Receipt) -> None:
        if receipt.side_table != receipt.shard.replace("shards/", "clips/", 1):
            problem = f"it lists {receipt.shard} with the side table {receipt.side_table}"
            self._findings.add_damage("entry_damaged", uri, problem)
        for key in (receipt.shard, receipt.side_table):
            if key in self.listed:
                problem = f"it lists {key}, which entry {self.listed[key]} already lists"
                self._findings.add_damage("shard_twice", uri, problem)
            self.listed[key] = seq
        self._clips_in[receipt.shard] = _sum(receipt.clips)

    def _replace(self, uri: str, entry: ManifestEntry) -> None:
        """Check that an entry has each clip of the shards that it replaces, and no other."""
        before = sum(self._clips_in.pop(one.shard, 0) for one in entry.replaced)
        for one in entry.replaced:
            self.listed.pop(one.shard, None)
            self.listed.pop(one.side_table, None)
        if before != _sum(entry.clips):
            problem = "its clips are not those of the shards that it replaces"
            self._findings.add_damage("entry_damaged", uri, problem)

    def check_redacted(self) -> None:
        """Check, after the last entry, that only clips that were removed have lost their id."""
        for ref, uri in self._redacted.items():
            with suppress(CorruptOutput):  # reported by _settle
                if ref not in self._rejected:
                    problem = f"it lacks the id of a clip of row {ref.row}, which is not removed"
                    self._findings.add_damage("not_rejected", uri, problem)

    def _settle(self, uri: str, entry: ManifestEntry) -> None:
        refs = entry.clips
        if entry.redacted:
            self._redacted.update({ref: uri for ref in refs if not ref.clip_id})
            refs = [ref for ref in refs if ref.clip_id]
        for ref in entry.refs():
            try:
                if not self.state.committed.add(ref):
                    problem = (
                        f"it settles clip {ref.clip_id} ({ref.source_uri}, segment {ref.segment} "
                        f"of plan row {ref.row}), which is already settled"
                    )
                    self._findings.add_damage("clip_twice", uri, problem)
            except CorruptOutput as error:
                self._findings.add("not_planned", uri, f"{uri}: {error}")
        if self._clips is not None:
            for ref, found in self._clips.mismatches(refs):
                problem = f"it settles plan row {ref.row} with the {found}"
                self._findings.add_damage("not_planned", uri, problem)

    def _reopen(self, uri: str, ref: ClipRef) -> None:
        try:
            if not (self._rejected.reopen(ref) and self.state.committed.reopen(ref)):
                problem = f"it withdraws the rejection of clip {ref.clip_id}, which is not rejected"
                self._findings.add_damage("not_rejected", uri, problem)
        except CorruptOutput as error:
            self._findings.add("not_planned", uri, f"{uri}: {error}")

    def _check_checkpoint(self, seq: int, listing: Listing) -> None:
        """Compare a checkpoint with the sums over all entries before ``seq``, if there is one."""
        # After a defect the sums differ because of it, and it has been reported.
        if seq not in listing.checkpoints or self._findings:
            return
        uri = self._store.uri_of(checkpoint_key(seq))
        try:
            saved = read_checkpoint(self._store, seq, self._num_rows)
            is_same = record_of(saved, b"") == record_of(self.state, b"")
            if not (is_same and saved.shards.equals(self.state.shards)):
                raise CorruptOutput(f"{uri} is damaged: it does not sum up the entries before it.")
        except (CorruptOutput, NotFound) as error:
            self._findings.add("checkpoint", uri, f"{str(error).rstrip('.')}. {_SHORTCUT}")


def _sum(clips: Iterable[ClipRef]) -> int:
    """A sum that differs for other clips, in whatever order they are."""
    return sum(hash((ref.row, ref.segment, ref.num_segments)) for ref in clips)
