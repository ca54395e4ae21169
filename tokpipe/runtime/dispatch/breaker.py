"""Stops a job early if so many clips are rejected that it would only waste the others.

``max_rejected_fraction`` may be out of reach. Or rejections come so thick that clips are hardly the
cause: a mount is gone, or a table is wrong. Each rejection at a stage raises that stage's alarm,
each clip that passes lowers it, and the stop comes at as many as the limit allows the whole job,
but at least ``MIN_ALARM`` and at most ``MAX_ALARM``: files that are missing in clumps stop nothing.

Rejections are committed once the alarm is over. After a stop, the next run tries them again.
"""

from collections import Counter
from dataclasses import dataclass, field

from tokpipe.runtime.dispatch.outbox import Outbox
from tokpipe.runtime.dispatch.protocol import AttemptId, Limits, StopRequested
from tokpipe.runtime.dispatch.settlement import Settlement
from tokpipe.telemetry.human import counted, counts_text
from tokpipe.types import Rejected

MIN_ALARM, MAX_ALARM = 20, 500
"""Fewer rejections stop no job: it is small, or has hardly begun."""
SUSPECT = 5
"""An alarm from which on rejections are not committed by a run that stops, or fails at its end."""
ENOUGH_ROWS = 100
"""Rows that are opened before they say how many clips the others have."""
GRACE_S = 30.0


@dataclass(slots=True)
class _Alarm:
    level: float = 0.0
    since: AttemptId = 0
    """The latest attempt when it was raised: leases that were out by then show nothing."""
    waiting: list[Rejected] = field(default_factory=list)


class Breaker:
    """Passes rejections on to the settlement, or has it stop the job."""

    def __init__(self, limits: Limits, settlement: Settlement, out: Outbox) -> None:
        self._limits = limits
        self._most = limits.max_rejected_fraction
        self._settlement = settlement
        self._out = out
        self._alarms = {"decode": _Alarm(), "encode": _Alarm()}
        self._rejected = Counter(limits.rejected_before)
        self._latest: list[Rejected] = []

    def passed(self, stage: str, num_clips: int, attempt: AttemptId, now: float) -> None:
        """So many clips of an attempt were not rejected by a stage."""
        alarm = self._alarms[stage]
        if alarm.waiting and attempt > alarm.since and not self._settlement.is_stopping:
            # The more the limit allows, the more must come between two clips to be an alarm.
            alarm.level -= num_clips * max(1.0, 2 * self._most / (1 - self._most))
            if alarm.level <= 0:
                self._believe(alarm, now)

    def rejected(self, one: Rejected, now: float) -> None:
        self._rejected[one.reason] += 1
        self._latest = [*self._latest[-2:], one]
        self._out.count("rejected_at", by="encode" if one.stage == "encode" else "decode")
        # What the plan rejects was known before, and is no alarm.
        if self._most == 1 or (alarm := self._alarms.get(one.stage)) is None:
            self._settlement.reject(one, now)
        else:
            alarm.since = alarm.since if alarm.waiting else self._out.latest_id
            alarm.waiting.append(one)
            alarm.level += 1
        if self._most < 1:
            allowed, is_sure = self._allowed()
            level = max(one.level for one in self._alarms.values())
            if level >= max(MIN_ALARM, min(MAX_ALARM, allowed)):
                self._stop("hardly any clip passed in between", now)
            elif is_sure and self._rejected.total() > max(allowed, MIN_ALARM):
                self._stop(f"more than max_rejected_fraction={self._most:.1%} allows", now)

    def settle(self, now: float, *, is_done: bool) -> None:
        """Nothing more will come: commit what waits, or leave it to the next run."""
        is_suspect = any(alarm.level >= SUSPECT for alarm in self._alarms.values())
        if is_done and is_suspect and self._rejected.total() > self._allowed()[0]:
            self._stop(f"more than max_rejected_fraction={self._most:.1%} allows", now)
        for alarm in self._alarms.values():
            if alarm.level < SUSPECT or (is_done and not self._settlement.why):
                self._believe(alarm, now)

    def _believe(self, alarm: _Alarm, now: float) -> None:
        for one in alarm.waiting:
            self._settlement.reject(one, now)
        alarm.waiting, alarm.level = [], 0.0

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
        alarm = max(self._alarms.values(), key=lambda one: one.level)
        suspects = Counter(one.reason for one in alarm.waiting if alarm.level >= SUSPECT)
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
        self._settlement.why = "\n".join(lines)
        self._settlement.stop(StopRequested(GRACE_S), now)
