"""Streams the manifest, counts its clips off the plan, and goes on after whatever is wrong."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise

from tokpipe.audit.findings import Findings
from tokpipe.audit.planned import PlannedClips
from tokpipe.errors import CorruptOutput, NotFound
from tokpipe.formats.checks import damaged
from tokpipe.formats.layout import entry_key
from tokpipe.formats.manifest import CommittedRows, ManifestEntry, ManifestState
from tokpipe.formats.manifest.checkpoint import read_checkpoint
from tokpipe.storage.store import Store
from tokpipe.types import ClipRef, Receipt

_PARALLEL_READS = 16
"""Entries on their way or in memory at once."""

_ROWS_NAMED = 3
"""Of the rows that are not settled, those that a message names."""


_ONLY_A_SHORTCUT = (
    "But a checkpoint is only a shortcut: it may as well be deleted, .json and .parquet both, and "
    "the next resume adds the manifest up by itself."
)


class ManifestAudit:
    """What the manifest says, entry by entry, and what contradicts it.

    Holds two bits per plan row, two keys per shard and a columnar row per shard.

    Args:
        clips: the plan's clips; None if the plan cannot be read.
    """

    def __init__(
        self, store: Store, num_rows: int, clips: PlannedClips | None, findings: Findings
    ) -> None:
        self._store = store
        self._clips = clips
        self._findings = findings
        self.state = ManifestState(CommittedRows(num_rows))
        self._rejected = CommittedRows(num_rows)
        self.listed: dict[str, int] = {}
        """Key of each listed object, and the entry that lists it."""

    def run(
        self,
        entries: Sequence[int],
        checkpoints: set[int],
        on_entry: Callable[[ManifestEntry], None],
    ) -> None:
        """Take in all entries, and hand each that reads on to ``on_entry``.

        Args:
            entries: numbers of those that are there, in order.
            checkpoints: numbers that checkpoints sum up to.
        """
        self._find_gaps(entries)
        for seq, entry in self._read(entries):
            # Once something was wrong, sums differ for that reason, which has been told.
            if seq in checkpoints and not self._findings:
                self._check_checkpoint(seq)
            if entry is not None:
                self._take(entry)
                on_entry(entry)
        end = entries[-1] + 1 if entries else 0
        for seq in sorted(checkpoints):
            if seq == end and not self._findings:
                self._check_checkpoint(seq)
            elif seq > end:
                uri = self._store.uri_of(entry_key(seq - 1))
                problem = f"it is missing, though a checkpoint sums up {seq} entries"
                self._findings.add("entry_missing", uri, damaged(uri, problem), count=seq - end)

    def _find_gaps(self, entries: Sequence[int]) -> None:
        for before, seq in pairwise([-1, *entries]):
            if seq > before + 1:
                uri = self._store.uri_of(entry_key(before + 1))
                missing = seq - before - 1
                problem = (
                    f"{'it is' if missing == 1 else f'{missing} entries from it on are'} missing, "
                    "though later entries of the manifest exist"
                )
                self._findings.add("entry_missing", uri, damaged(uri, problem), count=missing)

    def _read(self, entries: Iterable[int]) -> Iterator[tuple[int, ManifestEntry | None]]:
        """Yield each entry with its number; None, and a finding, for one that does not read."""
        pool = ThreadPoolExecutor(_PARALLEL_READS, thread_name_prefix="manifest")
        ahead: deque[tuple[int, Future[bytes]]] = deque()
        numbers = iter(entries)
        try:
            while True:
                while len(ahead) < _PARALLEL_READS and (seq := next(numbers, None)) is not None:
                    ahead.append((seq, pool.submit(self._store.get, entry_key(seq))))
                if not ahead:
                    return
                seq, future = ahead.popleft()
                yield seq, self._parse(seq, future)
        finally:
            pool.shutdown(cancel_futures=True)

    def _parse(self, seq: int, data: Future[bytes]) -> ManifestEntry | None:
        uri = self._store.uri_of(entry_key(seq))
        try:
            entry = ManifestEntry.from_json(uri, data.result())
            if entry.seq != seq:
                raise damaged(uri, f"it holds entry {entry.seq}")
        except NotFound as error:
            self._findings.add("entry_missing", uri, error)
        except CorruptOutput as error:
            self._findings.add("entry_damaged", uri, error)
        else:
            return entry
        return None

    def _take(self, entry: ManifestEntry) -> None:
        uri = self._store.uri_of(entry_key(entry.seq))
        for one in entry.reopened:
            self._reopen(uri, one.ref)
        for receipt in entry.shards:
            self._list(uri, entry.seq, receipt)
        refs = list(entry.refs())
        self._settle(uri, refs)
        for rejection in entry.rejected:
            self._add(self._rejected, rejection.ref)
        self.state.count(entry)

    def _list(self, uri: str, seq: int, receipt: Receipt) -> None:
        name = receipt.shard.removeprefix("shards/")
        if receipt.shard != f"shards/{name}" or receipt.side_table != f"clips/{name}":
            problem = f"it lists {receipt.shard} with the side table {receipt.side_table}"
            self._findings.add("entry_damaged", uri, damaged(uri, problem))
        for key in (receipt.shard, receipt.side_table):
            if key in self.listed:
                problem = f"it lists {key}, which entry {self.listed[key]} lists already"
                self._findings.add("shard_twice", uri, damaged(uri, problem))
            self.listed[key] = seq

    def _settle(self, uri: str, refs: list[ClipRef]) -> None:
        for ref in refs:
            try:
                if not self.state.committed.add(ref):
                    problem = (
                        f"it settles clip {ref.clip_id} ({ref.source_uri}, segment {ref.segment} "
                        f"of plan row {ref.row}), which is settled already"
                    )
                    self._findings.add("clip_twice", uri, damaged(uri, problem))
            except CorruptOutput as error:
                self._findings.add("not_planned", uri, f"{uri}: {error}")
        if self._clips is not None:
            for ref, found in self._clips.mismatches(refs):
                problem = f"it settles plan row {ref.row} with the {found}"
                self._findings.add("not_planned", uri, damaged(uri, problem))

    def _reopen(self, uri: str, ref: ClipRef) -> None:
        try:
            if self._rejected.reopen(ref) and self.state.committed.reopen(ref):
                return
            problem = f"it withdraws the rejection of clip {ref.clip_id}, which is not rejected"
            self._findings.add("not_rejected", uri, damaged(uri, problem))
        except CorruptOutput as error:
            self._findings.add("not_planned", uri, f"{uri}: {error}")

    @staticmethod
    def _add(rows: CommittedRows, ref: ClipRef) -> None:
        try:
            rows.add(ref)
        except CorruptOutput:
            return  # told when it was settled

    def _check_checkpoint(self, seq: int) -> None:
        uri = self._store.uri_of(f"manifest/{seq:08d}.checkpoint.json")
        state = self.state
        try:
            saved = read_checkpoint(self._store, seq, state.committed.num_rows)
            same = (
                saved.committed.bitmap == state.committed.bitmap
                and dict(saved.committed.partial) == dict(state.committed.partial)
                and saved.totals == state.totals
                and saved.shards.equals(state.shards)
            )
            if not same:
                raise damaged(uri, "it does not sum up the entries before it")
        except (CorruptOutput, NotFound) as error:
            self._findings.add("checkpoint", uri, f"{error} {_ONLY_A_SHORTCUT}")

    def unsettled(self) -> str | None:
        """Name some of the rows that are not settled; None if all are."""
        committed = self.state.committed
        named: list[str] = []
        for start in range(0, committed.num_rows, 2**20):
            done = committed.done(start, min(start + 2**20, committed.num_rows))
            for row in (start + (~done).nonzero()[0][:_ROWS_NAMED]).tolist():
                partial = committed.partial.get(row)
                named.append(
                    str(row)
                    if partial is None
                    else f"{row} ({len(partial.done)} of {partial.num_segments} clips settled)"
                )
            if len(named) >= _ROWS_NAMED:
                break
        return ", ".join(named[:_ROWS_NAMED]) or None
