"""The only writer of the manifest: one driver, one exclusive sequence of entries."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone

from tokpipe.errors import Fenced, RuntimeFault
from tokpipe.formats.manifest import (
    CHECKPOINT_INTERVAL,
    ManifestEntry,
    ManifestState,
    append,
    write_checkpoint,
)
from tokpipe.storage.store import Store
from tokpipe.types import ClipRef, Receipt, Rejected


class Committer:
    """Appends to the manifest of one output, as long as no other driver does.

    ``writer`` is this driver's attempt id: what tells its entries from another driver's. After
    ``Fenced`` or ``StorageError`` the outcome belongs to others: make a new one from the store.
    """

    def __init__(
        self,
        store: Store,
        state: ManifestState,
        writer: str,
        *,
        checkpoint_every: int = CHECKPOINT_INTERVAL,
    ) -> None:
        self.store = store
        self.state = state
        self.writer = writer
        self.checkpoint_every = checkpoint_every

    def commit(self, receipts: Sequence[Receipt], rejected: Sequence[Rejected]) -> None:
        """Make shards and rejections part of the output, all of them or none.

        What is committed already is left out, so that giving the same work twice adds nothing.

        Raises:
            Fenced: another driver took the sequence number.
            StorageError: the store gave no answer; the entry may or may not exist.
        """
        entry = ManifestEntry(
            seq=self.state.next_seq,
            writer=self.writer,
            written_at=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            shards=tuple(receipt for receipt in receipts if self._is_new(receipt)),
            rejected=tuple(one for one in rejected if not self._has(one.ref)),
        )
        if not (entry.shards or entry.rejected):
            return
        if len(set(entry.refs())) < sum(1 for _ in entry.refs()):
            raise RuntimeFault(
                f"{self.store.uri}: one commit settles a clip twice, which leasing rules out. The "
                "manifest could not be read again. Nothing was committed; run the job again, and "
                "if it happens twice, report it."
            )
        if not append(self.store, entry):
            raise Fenced(
                f"{self.store.uri}: manifest entry {entry.seq} was written by another driver. "
                "Two drivers on one output would tokenize everything twice, so this one stops; "
                "what it had not committed is left to the other. If no other driver should be "
                "running, find and stop it, then run this job again."
            )
        self.state.apply(entry)
        if self.state.next_seq % self.checkpoint_every == 0:
            write_checkpoint(self.store, self.state)

    def _has(self, ref: ClipRef) -> bool:
        return ref in self.state.committed

    def _is_new(self, receipt: Receipt) -> bool:
        known = sum(self._has(ref) for ref in receipt.clips)
        if 0 < known < len(receipt.clips):
            raise RuntimeFault(
                f"{self.store.uri}: {known} of the {len(receipt.clips)} clips of {receipt.shard} "
                "are committed already, which leasing rules out. Listing the shard would double "
                "them. Run the job again; if it happens twice, report it with the manifest."
            )
        return known == 0
