"""Reads the manifest entry by entry, compares it with the plan, and continues after defects."""

from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np

from tokpipe.audit.leftovers import Listing
from tokpipe.audit.planned import PlannedClips
from tokpipe.audit.report import Findings
from tokpipe.errors import CorruptOutput, NotFound
from tokpipe.formats.layout import checkpoint_key, entry_key
from tokpipe.formats.manifest import CommittedRows, ManifestEntry, ManifestState, count_entries
from tokpipe.formats.manifest.checkpoint import read_checkpoint
from tokpipe.formats.manifest.log import READ_AHEAD, read_entry
from tokpipe.storage.read_ahead import read_ahead
from tokpipe.storage.store import Store
from tokpipe.types import ClipRef, Receipt

_ROWS_NAMED = 3  # How many unsettled rows a message names

_SHORTCUT = (
    "But a checkpoint is only a shortcut: you can delete its .json and .parquet, and the next "
    "resume reads the entries instead."
)


class ManifestAudit:
    """What the manifest says, entry by entry, and what contradicts it.

    Holds two bits per plan row, and two keys and one row of a table per shard. ``clips`` is None
    if the plan cannot be read.
    """

    def __init__(
        self, store: Store, num_rows: int, clips: PlannedClips | None, findings: Findings
    ) -> None:
        self._store = store
        self._clips = clips
        self._findings = findings
        self.state = ManifestState(CommittedRows(num_rows))
        self._rejected = CommittedRows(num_rows)
        self.listed: dict[str, int] = {}  # Key of each listed object, and the entry that lists it

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

    def unsettled(self) -> str:
        """Name some of the rows that are not settled."""
        committed, partial = self.state.committed, self.state.committed.partial
        rows = np.flatnonzero(~committed.done(0, committed.num_rows))[:_ROWS_NAMED].tolist()
        return ", ".join(
            f"{row} ({len(partial[row].done)} of {partial[row].num_segments} clips settled)"
            if row in partial
            else str(row)
            for row in rows
        )

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
        self._settle(uri, list(entry.refs()))
        for rejection in entry.rejected:
            with suppress(CorruptOutput):  # reported by _settle
                self._rejected.add(rejection.ref)
        self.state.count(entry)

    def _list(self, uri: str, seq: int, receipt: Receipt) -> None:
        if receipt.side_table != receipt.shard.replace("shards/", "clips/", 1):
            problem = f"it lists {receipt.shard} with the side table {receipt.side_table}"
            self._findings.add_damage("entry_damaged", uri, problem)
        for key in (receipt.shard, receipt.side_table):
            if key in self.listed:
                problem = f"it lists {key}, which entry {self.listed[key]} already lists"
                self._findings.add_damage("shard_twice", uri, problem)
            self.listed[key] = seq

    def _settle(self, uri: str, refs: list[ClipRef]) -> None:
        for ref in refs:
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
        state = self.state
        try:
            saved = read_checkpoint(self._store, seq, state.committed.num_rows)
            if not (
                saved.committed.bitmap == state.committed.bitmap
                and saved.committed.partial == state.committed.partial
                and saved.totals == state.totals
                and saved.tail == state.tail
                and saved.shards.equals(state.shards)
            ):
                raise CorruptOutput(f"{uri} is damaged: it does not sum up the entries before it.")
        except (CorruptOutput, NotFound) as error:
            self._findings.add("checkpoint", uri, f"{str(error).rstrip('.')}. {_SHORTCUT}")
