"""Stops a job early if so many clips are rejected that it would only waste the others.

Either ``max_rejected_fraction`` is out of reach, or decoders reject so many clips in a row that a
mount is probably gone, or a table wrong: each rejection raises an alarm, and each clip that is
decoded lowers it. The alarm stops the job at as many as the limit allows the whole job, but at
least ``MIN_ALARM`` and at most ``MAX_ALARM``: files that are missing in clumps stop nothing.

Rejections are committed once the alarm is over. After a stop, the next run tries them again.
"""

from collections import Counter

from tokpipe.runtime.dispatch.outbox import Outbox
from tokpipe.runtime.dispatch.protocol import AttemptId, Limits, StopRequested
from tokpipe.runtime.dispatch.settlement import Settlement
from tokpipe.telemetry.human import counted, counts_text
from tokpipe.telemetry.redact import printable
from tokpipe.types import Rejected

MIN_ALARM, MAX_ALARM = 20, 500  # Fewer rejections stop no job: it is small, or has hardly begun
SUSPECT = 5
"""An alarm from which on rejections are not committed by a run that stops, or fails at its end."""
ENOUGH_ROWS = 100  # Rows that are opened before they say how many clips the others have
GRACE_S = 30.0


class Breaker:
    """Passes rejections on to the settlement, or has it stop the job."""

    def __init__(self, limits: Limits, settlement: Settlement, out: Outbox) -> None:
        self._limits = limits
        self._most = limits.max_rejected_fraction
        self._settlement = settlement
        self._out = out
        self._alarm = 0.0
        self._raised_at: AttemptId = 0
        """The latest attempt then: leases that were out show nothing about what comes after."""
        self._waiting: list[Rejected] = []
        self._rejected = Counter(limits.rejected_before)
        self._latest: list[Rejected] = []

    def decoded(self, num_clips: int, attempt: AttemptId, now: float) -> None:
        """So many clips of an attempt were not rejected."""
        if self._waiting and attempt > self._raised_at and not self._settlement.is_stopping:
            # The more the limit allows, the more must come between two clips to be an alarm.
            self._alarm -= num_clips * max(1.0, 2 * self._most / (1 - self._most))
            if self._alarm <= 0:
                self._believe(now)

    def rejected(self, one: Rejected, now: float) -> None:
        self._rejected[one.reason] += 1
        self._latest = [*self._latest[-2:], one]
        self._out.count("rejected_at", by="encode" if one.stage == "encode" else "decode")
        # What the plan rejects was known before. If encoders fail, ``Blame`` ends the job.
        if self._most == 1 or one.stage != "decode":
            self._settlement.reject(one, now)
        else:
            self._raised_at = self._raised_at if self._waiting else self._out.latest_id
            self._waiting.append(one)
            self._alarm += 1
        if self._most < 1:
            allowed, is_sure = self._allowed()
            if self._alarm >= max(MIN_ALARM, min(MAX_ALARM, allowed)):
                self._stop("hardly any clip passed in between", now)
            elif is_sure and self._rejected.total() > max(allowed, MIN_ALARM):
                self._stop(f"more than max_rejected_fraction={self._most:.1%} allows", now)

    def settle(self, now: float, *, is_done: bool) -> None:
        """Nothing more will come: commit what waits, or leave it to the next run."""
        if is_done and self._alarm >= SUSPECT and self._rejected.total() > self._allowed()[0]:
            self._stop(f"more than max_rejected_fraction={self._most:.1%} allows", now)
        if self._alarm < SUSPECT or (is_done and not self._settlement.why):
            self._believe(now)

    def _believe(self, now: float) -> None:
        for one in self._waiting:
            self._settlement.reject(one, now)
        self._waiting, self._alarm = [], 0.0

    def _allowed(self) -> tuple[float, bool]:
        """How many rejections the whole job may have, and whether that is known well enough.

        Rows that nobody has opened count as twice as many clips as the average of the others.
        """
        run, limits = self._out.account, self._limits
        num_opened = max(1, run.num_opened - run.rejected_at.get("decode", 0))
        num_unopened = max(0, limits.num_unopened - run.num_opened)
        share = 1 + 2 * num_unopened / num_opened
        is_sure = num_opened >= ENOUGH_ROWS or not num_unopened or not self._most
        return self._most * (limits.num_clips + run.num_extra_clips * share), is_sure

    def _stop(self, why: str, now: float) -> None:
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
        self._settlement.stop(StopRequested(GRACE_S), now)
