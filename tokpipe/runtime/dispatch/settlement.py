"""From encoded clips to commits: open shards, receipts, rejections, and how the job ends."""

from collections import Counter
from dataclasses import dataclass, field

from tokpipe.runtime.dispatch import protocol
from tokpipe.runtime.dispatch.outbox import Outbox
from tokpipe.runtime.dispatch.queues import Queues
from tokpipe.telemetry.account import Account
from tokpipe.types import Receipt, Rejected

REJECTED_PER_COMMIT = 1000  # This many rejections are committed without waiting for a shard


@dataclass(slots=True)
class _OpenShard:
    """Encoded clips of one grid that wait for a shard."""

    since: float
    num_codes: int = 0
    clips: list[protocol.Clip] = field(default_factory=list)
    is_endangered: bool = False  # Some of its codes are on a draining node


class Settlement:
    """Collects codes into shards, and what is written or rejected into commits, one at a time.

    It ends a job when everything is committed, or when a stop's grace is over.
    """

    def __init__(self, limits: protocol.Limits, queues: Queues, out: Outbox) -> None:
        self._limits = limits
        self._queues = queues
        self._out = out
        self._open: dict[tuple[int, int], _OpenShard] = {}
        self._receipts: list[Receipt] = []
        self._rejected: list[Rejected] = []
        self._rejected_since: float | None = None
        self._useful_s = 0.0  # Encoder seconds behind the receipts
        self._reported = Account()  # What commits so far have reported
        self._committing: Account | None = None
        """What the commit in flight will add to the account of the run."""
        self._encode_until: float | None = None  # Set when the job is asked to stop
        self.end_by = 0.0  # When a stop ends the job, whatever is still being written
        self.why = ""  # Why the job is stopped early, if it is because of its rejections

    def add_codes(
        self, clip: protocol.Clip, grid: tuple[int, int], num_codes: int, now: float
    ) -> None:
        """Put an encoded clip into the open shard of its grid."""
        shard = self._open.setdefault(grid, _OpenShard(since=now))
        shard.clips.append(clip)
        shard.num_codes += num_codes

    def endanger(self, attempt: protocol.AttemptId) -> None:
        """An output is on a draining node: write its codes soon."""
        for shard in self._open.values():
            places = (place for clip in shard.clips for place in clip.places)
            shard.is_endangered |= any(place.source == attempt for place in places)

    def close_due(self, now: float, *, all_of_them: bool) -> None:
        """Close shards that are full, old or endangered, or all of them."""
        limits = self._limits
        for grid, shard in list(self._open.items()):
            is_full = shard.num_codes * limits.bytes_per_code >= limits.shard_bytes
            is_old = now - shard.since >= limits.shard_max_age_s
            if all_of_them or shard.is_endangered or is_full or is_old:
                clips = tuple(self._open.pop(grid).clips)
                self._queues.add_shard(protocol.Lease("write", clips, lease_id=self._out.new_id()))

    def written(self, receipt: Receipt, encode_s: float) -> None:
        """A shard is stored and can be committed."""
        self._receipts.append(receipt)
        self._useful_s += encode_s

    def reject(self, rejected: Rejected, now: float) -> None:
        if self._rejected_since is None:
            self._rejected_since = now
        self._rejected.append(rejected)

    def commit_due(self, now: float, *, is_last: bool) -> None:
        """Commit if there is enough, or if nothing else will come; one commit at a time."""
        if self._committing is not None or not (self._receipts or self._rejected):
            return
        since = self._rejected_since
        waited = since is not None and now - since >= self._limits.shard_max_age_s
        if self._receipts or is_last or waited or len(self._rejected) >= REJECTED_PER_COMMIT:
            self._commit(tuple(self._receipts), tuple(self._rejected))
            self._receipts, self._rejected, self._rejected_since = [], [], None

    def _commit(self, receipts: tuple[Receipt, ...], rejected: tuple[Rejected, ...]) -> None:
        self._committing = Account(
            useful_s=self._useful_s,
            clips={"write": sum(len(one.clips) for one in receipts)},
            rejected=Counter(one.reason for one in rejected),
            num_frames=sum(one.num_frames for one in receipts),
            num_codes=sum(one.num_codes for one in receipts),
            written_bytes=sum(one.size_bytes + one.side_table_size_bytes for one in receipts),
            num_shards=len(receipts),
            num_commits=1,
        )
        self._useful_s = 0.0
        account = self._out.account + self._committing
        self._out.emit(protocol.Commit(receipts, rejected, account - self._reported))
        self._reported = account

    def committed(self) -> None:
        """The commit in flight is in the manifest."""
        assert self._committing is not None
        self._out.add_account(self._committing)
        self._committing = None

    def stop(self, event: protocol.StopRequested, now: float) -> None:
        """Let encoders finish for a grace period, and writers for another."""
        text = "stopping early: too many clips are rejected" if self.why else "stopping"
        self._out.note("stop_requested", text, is_warning=bool(self.why), grace_s=event.grace_s)
        self._encode_until = now + event.grace_s
        self.end_by = now + 2 * event.grace_s

    @property
    def is_stopping(self) -> bool:
        return self._encode_until is not None

    def encoding_is_over(self, now: float) -> bool:
        """Whether a stop's grace for encoders has passed."""
        return self._encode_until is not None and now >= self._encode_until

    @property
    def has_open_shards(self) -> bool:
        return bool(self._open)

    def finish_if_over(
        self, now: float, *, all_written: bool, all_encoded: bool, encoding: bool
    ) -> None:
        """End the job if nothing is left to do, or if it is asked to stop and may."""
        if self.is_stopping and now >= self.end_by:
            self._out.emit(protocol.Finish("stopped", self.why))
        elif all_written and not (self._committing or self._receipts or self._rejected):
            if all_encoded and not self.why:
                self._out.emit(protocol.Finish("done"))
            elif self.is_stopping and not encoding:
                self._out.emit(protocol.Finish("stopped", self.why))
