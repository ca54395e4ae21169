"""The only writer of the manifest: one driver, in one exclusive sequence of entries."""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Any

import tokpipe
from tokpipe.errors import Fenced, PlanMismatch, RuntimeFault, StorageError
from tokpipe.formats.layout import entry_key
from tokpipe.formats.manifest import (
    CHECKPOINT_INTERVAL,
    Claim,
    Growth,
    ManifestEntry,
    ManifestState,
    Reopened,
    append,
    checkpoint_spacing,
    iter_entries,
    write_checkpoint,
)
from tokpipe.storage.store import Store
from tokpipe.telemetry.account import Account
from tokpipe.telemetry.logs import LOGGER, log_event
from tokpipe.types import ClipRef, Receipt, Rejected

_CLAIM_ATTEMPTS = 10
REOPENED_PER_ENTRY = 10_000


@dataclass(eq=False)
class Committer:
    """Appends to the manifest of one output until another driver does.

    ``state`` is the manifest as it was loaded, and the committer's from then on. ``writer`` marks
    its entries. ``Fenced`` and ``StorageError`` leave the outcome unknown: claim the output again.
    """

    store: Store
    state: ManifestState
    writer: str
    checkpoint_every: int = CHECKPOINT_INTERVAL
    _is_late: bool = False  # Another driver claimed the output after the state was loaded

    def claim(self) -> None:
        """Become the one driver of the output, and fence every older one, as one that is frozen or
        cut off cannot be asked whether it is alive. Of two that start at the same moment, one
        wins, and the other raises Fenced."""
        store, state = self.store, self.state
        claim = Claim(socket.gethostname(), os.getpid(), tokpipe.__version__)
        for _ in range(_CLAIM_ATTEMPTS):
            for entry in iter_entries(store, state.next_seq, after=state.tail):
                state.apply(entry)
                self._is_late |= entry.claim is not None
            try:
                seq = self.append(claim=claim).seq
            except Fenced:
                (theirs,) = iter_entries(store, state.next_seq, state.next_seq + 1)
                if theirs.claim is not None:
                    raise
                continue  # an older driver has just committed: take that in, and try again
            log_event("output_claimed", f"claimed by manifest entry {seq}", seq=seq)
            return
        raise Fenced(
            f"{store.uri}: another driver commits faster than this one can claim the output. Two "
            "would tokenize everything twice. Find and stop the other, then run this job again."
        )

    def commit(
        self,
        receipts: Sequence[Receipt],
        rejected: Sequence[Rejected],
        account: Account | None = None,
    ) -> None:
        """Make shards and rejections part of the output, all of them or none.

        Raises Fenced if another driver took the sequence number, StorageError if the store did not
        answer (the entry may exist), and RuntimeFault, before it writes, for a settled clip.
        """
        seen = set[ClipRef]()
        for ref in chain(*(one.clips for one in receipts), (one.ref for one in rejected)):
            if ref in seen or ref in self.state.committed:
                raise RuntimeFault(
                    f"{self.store.uri}: a commit settles clip {ref.clip_id} ({ref.source_uri}) "
                    "again, which leasing rules out. The dataset would hold it twice. Nothing was "
                    "committed; run the job again, and if it happens twice, report it."
                )
            seen.add(ref)
        began = time.monotonic()
        entry = self.append(shards=tuple(receipts), rejected=tuple(rejected), account=account)
        if LOGGER.isEnabledFor(logging.INFO):  # it builds an event per clip
            _log_entry(entry, time.monotonic() - began)

    def reopen(self, rejected: Sequence[Rejected], instead: Sequence[Rejected] = ()) -> None:
        """Withdraw rejections, so that clips are work again, or rejected ``instead``."""
        for start in range(0, len(rejected), REOPENED_PER_ENTRY):
            some = slice(start, start + REOPENED_PER_ENTRY)
            withdrawn = tuple(Reopened(one.ref, one.reason) for one in rejected[some])
            self.append(reopened=withdrawn, rejected=tuple(instead[some]))

    def grow(self, growth: Growth) -> None:
        """Append rows to the plan, whose end must be where they were planned to follow."""
        if self._is_late or growth.first_row != self.state.committed.num_rows:
            raise PlanMismatch(  # or a purge may have deleted what is not listed yet
                f"{self.store.uri}: another run has extended the plan since this one listed the "
                "sources, or might have. Rows would be in it twice. Run the same command again."
            )
        self.append(growth=growth)

    def watch(self) -> None:
        """Raise Fenced if another driver has claimed the output, without waiting for a commit."""
        with contextlib.suppress(StorageError):  # if it lasts, a commit will report it
            if self.store.size(entry_key(self.state.next_seq)) is not None:
                raise self._fenced(self.state.next_seq)

    def append(self, **content: Any) -> ManifestEntry:
        """Write and return the next entry, with this content. Raise as ``commit``."""
        seq, now = self.state.next_seq, datetime.now(UTC).isoformat(timespec="milliseconds")
        entry = ManifestEntry(seq, self.writer, now, previous=self.state.tail.sha256, **content)
        if (appended := append(self.store, entry)) is None:
            raise self._fenced(seq)
        self.state.apply(appended)
        if (seq + 1) % checkpoint_spacing(seq + 1, self.checkpoint_every) == 0:
            write_checkpoint(self.store, self.state)
        return appended

    def _fenced(self, seq: int) -> Fenced:
        (theirs,) = iter_entries(self.store, seq, seq + 1)
        where = f" (process {theirs.claim.pid} on {theirs.claim.host})" if theirs.claim else ""
        return Fenced(
            f"{self.store.uri}: manifest entry {seq} was written by another driver, "
            f"{theirs.writer}{where}, at {theirs.written_at}. Two would tokenize everything twice, "
            "so this one leaves the rest to it. If it should not run, stop it, then run this again."
        )


def _log_entry(entry: ManifestEntry, commit_s: float) -> None:
    seq, num_shards, num_rejected = entry.seq, len(entry.shards), len(entry.rejected)
    names = ("shard", "num_frames", "num_codes", "size_bytes")
    for receipt in entry.shards:
        fields = {name: getattr(receipt, name) for name in names}
        num_clips, text = len(receipt.clips), f"{receipt.shard}: {len(receipt.clips):,} clips"
        log_event("shard_committed", text, seq=seq, num_clips=num_clips, **fields)
    for one in entry.rejected:
        fields = asdict(one)
        text = f"{one.ref.source_uri}: {one.reason}: {fields.pop('message')}"
        log_event("clip_rejected", text, seq=seq, **fields.pop("ref"), **fields)
    log_event(
        "committed",
        f"manifest entry {seq}: {num_shards:,} shards, {num_rejected:,} rejections",
        seq=seq,
        num_shards=num_shards,
        num_clips=sum(len(receipt.clips) for receipt in entry.shards),
        num_rejected=num_rejected,
        commit_s=round(commit_s, 3),
    )
