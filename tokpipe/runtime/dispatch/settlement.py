"""From encoded clips to commits: open shards, receipts, rejections, and how the job ends."""

from collections import Counter
from dataclasses import dataclass, field
from math import inf

from tokpipe.runtime.dispatch import protocol
from tokpipe.runtime.dispatch.outbox import Outbox
from tokpipe.runtime.dispatch.queues import Queues
from tokpipe.telemetry.account import Account
from tokpipe.telemetry.human import counted, counts_text
from tokpipe.telemetry.redact import printable
from tokpipe.types import Receipt, Rejected

REJECTED_PER_COMMIT = 1000  # This many rejections are committed without waiting for a shard
MIN_ALARM, MAX_ALARM = 20, 500  # Fewer rejections stop no job: it is small, or has hardly begun
SUSPECT = 5  # From this alarm on, a run that stops, or fails at its end, commits no rejections
ENOUGH_ROWS = 100  # Rows that are opened before they say how many clips the others have


@dataclass(slots=True)
class _OpenShard:
    """Encoded clips of one grid that wait for a shard."""

    since: float
    num_codes: int = 0
    clips: list[protocol.Clip] = field(default_factory=list)


class Settlement:
    """Collects codes into shards, and what is written or rejected into commits, one at a time. Ends
    a job when everything is committed, or when a stop's grace is over."""

    def __init__(self, limits: protocol.Limits, queues: Queues, out: Outbox) -> None:
        self._limits, self._queues, self._out = limits, queues, out
        self.open_shards: dict[tuple[int, int], _OpenShard] = {}  # By grid
        self._receipts: list[Receipt] = []
        self._rejected: list[Rejected] = []
        self._rejected_since = inf  # When the first of them came
        self._useful_s = 0.0  # Encoder seconds behind the receipts
        self._reported = Account()  # What commits so far have reported
        self._committing: Account | None = None  # What the commit in flight will add to the run
        self.encode_until = inf  # When a stop's grace for encoders is over
        self.end_by = inf  # When a stop ends the job, whatever is still being written
        self.why = ""  # Why the job is stopped early, if it is because of its rejections

    def add_codes(self, clip: protocol.Clip, grid: tuple[int, int], num_codes: int) -> None:
        """Put an encoded clip into the open shard of its grid."""
        shard = self.open_shards.setdefault(grid, _OpenShard(since=self._out.now))
        shard.clips.append(clip)
        shard.num_codes += num_codes

    def endanger(self, attempt: protocol.AttemptId) -> None:
        """An output is on a draining node: write its codes soon."""
        for shard in self.open_shards.values():
            if any(place.source == attempt for clip in shard.clips for place in clip.places):
                shard.since = -inf

    def close_due(self, *, all_of_them: bool) -> None:
        """Close shards that are full or old, or all of them."""
        limits = self._limits
        for grid, shard in list(self.open_shards.items()):
            is_full = shard.num_codes * limits.bytes_per_code >= limits.shard_bytes
            is_old = self._out.now - shard.since >= limits.shard_max_age_s
            if all_of_them or is_full or is_old:
                clips = tuple(self.open_shards.pop(grid).clips)
                lease = protocol.Lease("write", clips, lease_id=self._out.new_id())
                self._queues.shards.append(lease)

    def written(self, receipt: Receipt, encode_s: float) -> None:
        """A shard is stored and can be committed."""
        self._receipts.append(receipt)
        self._useful_s += encode_s

    def reject(self, rejected: Rejected) -> None:
        self._rejected_since = min(self._out.now, self._rejected_since)
        self._rejected.append(rejected)

    def commit_due(self, *, is_last: bool) -> None:
        """Commit if there is enough, or if nothing else will come; one commit at a time."""
        if self._committing is not None or not (self._receipts or self._rejected):
            return
        waited = self._out.now - self._rejected_since >= self._limits.shard_max_age_s
        is_enough = self._receipts or len(self._rejected) >= REJECTED_PER_COMMIT
        if not (is_enough or is_last or waited):
            return
        receipts, rejected = tuple(self._receipts), tuple(self._rejected)
        self._receipts, self._rejected, self._rejected_since = [], [], inf
        self._committing = Account(
            useful_s=self._useful_s,
            clips={"write": sum(len(one.clips) for one in receipts)},
            rejected=Counter(one.reason for one in rejected),
            num_frames=sum(one.num_frames for one in receipts),
            num_codes=sum(one.num_codes for one in receipts),
            written_bytes=sum(one.size_bytes + one.side_table_size_bytes for one in receipts),
        )
        self._useful_s = 0.0
        account = self._out.account + self._committing
        self._out.emit(protocol.Commit(receipts, rejected, account - self._reported))
        self._reported = account

    def committed(self) -> None:
        assert self._committing is not None
        self._out.committed += self._committing
        self._committing = None

    def stop(self, event: protocol.StopRequested) -> None:
        """Let encoders finish for a grace period, and writers for another."""
        text = "stopping early: too many clips are rejected" if self.why else "stopping"
        self._out.note("stop_requested", text, is_warning=bool(self.why), grace_s=event.grace_s)
        self.encode_until = self._out.now + event.grace_s
        self.end_by = self._out.now + 2 * event.grace_s

    @property
    def is_stopping(self) -> bool:
        return self.encode_until < inf

    def finish_if_over(self, *, all_written: bool, all_encoded: bool, encoding: bool) -> None:
        """End the job if nothing is left to do, or if it is asked to stop and may."""
        all_committed = all_written and not (self._committing or self._receipts or self._rejected)
        if all_committed and all_encoded and not self.why:
            self._out.emit(protocol.Finish("done"))
        elif self._out.now >= self.end_by or (all_committed and self.is_stopping and not encoding):
            self._out.emit(protocol.Finish("stopped", self.why))


class Breaker:
    """Passes rejections on to the settlement, or stops a job that would only waste its other clips.

    Either ``max_rejected_fraction`` is out of reach, or decoders reject so many clips in a row that
    a mount is probably gone, or a table wrong: each rejection raises an alarm, and each clip that
    is decoded lowers it. The alarm stops the job at as many as the limit allows the whole job, but
    at least ``MIN_ALARM`` and at most ``MAX_ALARM``: files missing in clumps stop nothing.

    Rejections are committed once the alarm is over. After a stop, the next run tries them again.
    """

    def __init__(self, limits: protocol.Limits, settlement: Settlement, out: Outbox) -> None:
        self._limits, self._settlement, self._out = limits, settlement, out
        self._most = limits.max_rejected_fraction
        self._alarm = 0.0
        self._raised_at: protocol.AttemptId = 0  # Latest then; answers to earlier ones do not count
        self._waiting: list[Rejected] = []
        self._rejected = Counter(limits.rejected_before)
        self._latest: list[Rejected] = []

    def decoded(self, num_clips: int, attempt: protocol.AttemptId) -> None:
        """So many clips of an attempt were not rejected."""
        if self._waiting and attempt > self._raised_at and not self._settlement.is_stopping:
            # The more the limit allows, the more must come between two clips to be an alarm.
            self._alarm -= num_clips * max(1.0, 2 * self._most / (1 - self._most))
            if self._alarm <= 0:
                self._believe()

    def rejected(self, one: Rejected) -> None:
        self._rejected[one.reason] += 1
        self._latest = [*self._latest[-2:], one]
        self._out.count("rejected_at", by="encode" if one.stage == "encode" else "decode")
        # What the plan rejects was known before. If encoders fail, ``Blame`` ends the job.
        if self._most == 1 or one.stage != "decode":
            self._settlement.reject(one)
        else:
            self._raised_at = self._raised_at if self._waiting else self._out.latest_id
            self._waiting.append(one)
            self._alarm += 1
        if self._most < 1:
            allowed, is_sure = self._allowed()
            if self._alarm >= max(MIN_ALARM, min(MAX_ALARM, allowed)):
                self._stop("hardly any clip passed in between")
            elif is_sure and self._rejected.total() > max(allowed, MIN_ALARM):
                self._stop(f"more than max_rejected_fraction={self._most:.1%} allows")

    def settle(self, *, is_done: bool) -> None:
        """Nothing more will come: commit what waits, or leave it to the next run."""
        if is_done and self._alarm >= SUSPECT and self._rejected.total() > self._allowed()[0]:
            self._stop(f"more than max_rejected_fraction={self._most:.1%} allows")
        if self._alarm < SUSPECT or (is_done and not self._settlement.why):
            self._believe()

    def _believe(self) -> None:
        for one in self._waiting:
            self._settlement.reject(one)
        self._waiting, self._alarm = [], 0.0

    def _allowed(self) -> tuple[float, bool]:
        """How many rejections the whole job may have, and whether that is known well enough: rows
        that nobody has opened count as twice as many clips as the average of the others."""
        run, limits = self._out.account, self._limits
        num_opened = max(1, run.num_opened - run.rejected_at.get("decode", 0))
        num_unopened = max(0, limits.num_unopened - run.num_opened)
        share = 1 + 2 * num_unopened / num_opened
        is_sure = num_opened >= ENOUGH_ROWS or not num_unopened or not self._most
        return self._most * (limits.num_clips + run.num_extra_clips * share), is_sure

    def _stop(self, why: str) -> None:
        if self._settlement.is_stopping:
            return
        suspects = Counter(one.reason for one in self._waiting if self._alarm >= SUSPECT)
        ((reason, _),) = (suspects or self._rejected).most_common(1)
        retry = f"with --retry-rejected --reason {reason}"
        lines = [
            f"{counted(self._rejected.total(), 'clip')} rejected "
            f"({counts_text(self._rejected)}), {why}, so the job stopped early. The latest:",
            *(f"  {one.ref.source_uri}: {one.reason}: {one.message}" for one in self._latest),
            f"Is a mount gone, or a table wrong? The last {suspects.total():,} are not recorded: "
            "once the files are where their sources say, the same command tries them again "
            f"(those before, {retry}). A corrected table needs a new output.uri: this output has "
            "a stored plan, and its tables are not read again"
            if suspects
            else f"The codes of other clips stay. Fix the sources and run again {retry}",
            "If the clips are unusable, raise max_rejected_fraction; 1.0 allows any number",
        ]
        self._settlement.why = "\n".join(map(printable, lines))
        self._settlement.stop(protocol.StopRequested())
