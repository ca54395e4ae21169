"""Who is at fault when work fails: retry a lease, run it alone, reject a clip, or end the job."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tokpipe.runtime.dispatch.outbox import Outbox
from tokpipe.runtime.dispatch.protocol import Abort, Lease
from tokpipe.telemetry.human import duration
from tokpipe.types import ClipRef, Failed, Rejected, Stage, WorkItem

Key = tuple[int, int]  # Plan row and segment of a clip, or -1 and the id of a shard's lease
MAX_FAULTS = 30  # Leases that fail in a row, whatever they hold, before the job is aborted
MAX_TROUBLE_S = 300.0
"""For how long a clip may meet only nodes with trouble before the job is aborted: a mount may come
back by then. Other clips may pass meanwhile, such as small ones where a disk is nearly full."""
RETRY_PAUSE_S = 5.0  # Before a clip that a stage gave up on is tried again; then 4 times as long


class Blame:
    """Counts strikes, and decides what they mean. ``ref_of`` names the clip of an unseen item."""

    def __init__(
        self, max_attempts: int, ref_of: Callable[[WorkItem], ClipRef], out: Outbox
    ) -> None:
        self._max_attempts, self._ref_of, self._out = max_attempts, ref_of, out
        self._strikes: Counter[Key] = Counter()
        self._store_strikes: Counter[Key] = Counter()  # Apart: must never lead to a rejection
        self._trouble_since: dict[tuple[Stage, Key], float] = {}
        """When the clips that nodes had trouble with, and no node was done with, were first hit."""
        self._faults = 0

    def answered(self, lease: Lease, failure: Failed | None) -> None:
        """A lease was answered, so its store works. ``failure``: it gave up on all of its clips."""
        self._store_strikes.pop(_key(lease), None)
        if self._trouble_since:
            for key in _keys(lease):
                self._trouble_since.pop((lease.stage, key), None)
        if failure is None:
            self._faults = 0
        else:
            self._failed(lease, failure.message)
        if lease.stage == "write":
            for key in (_key(lease), *_keys(lease)):
                self.settled(key)

    def settled(self, key: Key) -> None:
        """A clip is rejected or in a shard; forget its strikes."""
        self._strikes.pop(key, None)

    def worker_failed(self, lease: Lease, reason: str, why: str) -> Sequence[Lease] | Rejected:
        """A worker went down with this lease: what to run alone, or its one clip rejected."""
        self._failed(lease, why)
        if lease.stage == "write":
            if (strikes := self._strike(lease)) >= self._max_attempts:
                self._out.abort(
                    f"a shard of {len(lease.clips)} clips took down its write worker {strikes} "
                    f"times; the last error: {why}. Committed work is kept; if memory ran out, "
                    "lower output.shard_bytes, then run the job again."
                )
            return [lease]
        if len(lease.clips) > 1:
            return [lease._replace(clips=(clip,)) for clip in lease.clips]
        verdict = self.stage_gave_up(lease, Failed(self._ref_of(lease.items[0]), reason, why))
        if not isinstance(verdict, Rejected):
            return [lease]
        return replace(verdict, message=f"gave up after {verdict.attempts} attempts alone: {why}")

    def stage_gave_up(self, lease: Lease, failed: Failed) -> float | Rejected:
        """A stage gave up on the clip of a lease: seconds until the next try, or its rejection."""
        ref, stage, reason, message = failed.ref, lease.stage, failed.reason, failed.message
        if (strikes := self._strike(lease)) >= self._max_attempts:
            return Rejected(ref, stage, reason, message, failed.backend, strikes, failed.error)
        clip: dict[str, Any] = {"clip_id": ref.clip_id, "source_uri": ref.source_uri}
        text = f"{stage}: {ref.source_uri} will be tried again: {message}"
        self._out.note("clip_retried", text, **clip, stage=stage, reason=reason, attempts=strikes)
        return RETRY_PAUSE_S * 4.0 ** (strikes - 1)

    def store_failed(self, lease: Lease, why: str) -> None:
        """A store failed under a lease; abort if it does so again and again."""
        self._store_strikes[_key(lease)] += 1
        if self._store_strikes[_key(lease)] >= self._max_attempts:
            self._out.emit(Abort("storage", why))

    def node_failed(self, lease: Lease, why: str) -> float:
        """A node had trouble under a lease: return for how long one of its clips met only such."""
        now, keys = self._out.now, _keys(lease)
        since = min(self._trouble_since.setdefault((lease.stage, key), now) for key in keys)
        if now - since >= MAX_TROUBLE_S:
            self._out.abort(
                f"{lease.stage}: for {duration(now - since)} (m:ss), no node has been able to work "
                f"on {self._ref_of(lease.items[0]).source_uri}; the last error: {why}. No clip is "
                "to blame. Committed work is kept; fix the nodes, then run the job again."
            )
        return now - since

    def _failed(self, lease: Lease, why: str) -> None:
        """A lease had no result; abort if too many in a row have none."""
        self._faults += 1
        if self._faults >= MAX_FAULTS:
            self._out.abort(
                f"{lease.stage}: {MAX_FAULTS} leases in a row failed; the last error: {why}. So "
                "many failures are not the clips' fault. Committed work is kept; fix the cause (if "
                f"workers are slow, raise runtime.{lease.stage}.lease_deadline_s), then run again."
            )

    def _strike(self, lease: Lease) -> int:
        self._strikes[_key(lease)] += 1
        return self._strikes[_key(lease)]


def _keys(lease: Lease) -> list[Key]:
    return [(clip.item.row, clip.item.segment) for clip in lease.clips]


def _key(lease: Lease) -> Key:
    item = lease.clips[0].item
    return (-1, lease.lease_id) if lease.stage == "write" else (item.row, item.segment)
