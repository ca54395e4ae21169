"""What a job did over the time that it worked, from its manifest, in a bounded number of steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from tokpipe.report.groups import Group
from tokpipe.telemetry.account import Account
from tokpipe.telemetry.speed import ACTIVITIES, OF_STAGE, Speed, speed_of
from tokpipe.types import STAGES, Stage
from tokpipe.verbs.status import time_of

MAX_STEPS = 120
"""When these are full, each two become one of twice the length."""
FIRST_STEP_S = 1.0

_COUNTS = ("clips", "frames", "timed_s", "timed_frames")
_COLUMNS = {
    name: place
    for place, name in enumerate(
        [*_COUNTS, *(f"spent {one}" for one in ACTIVITIES), *(f"up {one}" for one in STAGES)]
    )
}


@dataclass(frozen=True, slots=True)
class Step:
    """What was done between two moments of working time."""

    begin_s: float
    end_s: float
    amounts: NDArray[np.float64]
    num_drivers: int
    """Drivers that began in it."""

    def __getitem__(self, name: str) -> float:
        return float(self.amounts[_COLUMNS[name]])

    @property
    def account(self) -> Account:
        """What the actors spent, as far as the manifest tells."""
        return Account(
            spent_s={one: self[f"spent {one}"] for one in ACTIVITIES},
            up_s={one: self[f"up {one}"] for one in STAGES},
        )

    @property
    def frames_per_s(self) -> float:
        return self["frames"] / (self.end_s - self.begin_s) if self.end_s > self.begin_s else 0.0

    @property
    def speed(self) -> Speed | None:
        """None where the manifest does not tell what actors did."""
        return speed_of(self.account)


@dataclass(frozen=True, slots=True)
class StageUse:
    """What one stage's actors did with their time."""

    stage: Stage
    actors: float
    """Mean number of those that were up."""
    up_s: float
    shares: dict[str, float]
    """Of ``up_s``, by what it went into; what is left of it they waited."""
    own_frames_per_s: float | None
    """What this many actors would do if they never waited; None if they did nothing."""

    @property
    def waiting(self) -> float:
        return max(0.0, 1.0 - sum(self.shares.values()))


@dataclass
class History:
    """The time at work of all drivers, one after the other; the time between them is left out.

    What a group of entries tells is spread evenly over the time since the same driver's group
    before: codes come to the manifest a shard at a time, but are made all the while. Where one
    entry stands for many, its actors do. Clocks of different drivers need not agree.
    """

    step_s: float = FIRST_STEP_S
    worked_s: float = 0.0
    first_at: str | None = None
    last_at: str | None = None
    """When the first and the last entry was written; None of an empty manifest."""
    num_drivers: int = 0
    versions: dict[str, None] = field(default_factory=dict)
    """Versions of tokpipe that took part, in order."""
    _amounts: NDArray[np.float64] = field(
        default_factory=lambda: np.zeros((MAX_STEPS, len(_COLUMNS)))
    )
    _begun: NDArray[np.int64] = field(default_factory=lambda: np.zeros(MAX_STEPS, np.int64))
    _writer: str | None = None
    _at: datetime | None = None

    def add(self, group: Group) -> None:
        """Take in the next entry, or several."""
        entry = group.entry
        at = time_of(entry)
        begin_s = self.worked_s
        if entry.writer == self._writer and self._at is not None:
            self.worked_s += max(0.0, (at - self._at).total_seconds())
        else:
            self.num_drivers += 1
        while self.worked_s > MAX_STEPS * self.step_s:
            self._halve()
        if entry.writer != self._writer:
            self._begun[self._step_at(begin_s)] += 1
        if entry.claim is not None:
            self.versions[entry.claim.tokpipe_version] = None
        self._writer, self._at = entry.writer, at
        self.first_at = self.first_at or entry.written_at
        self.last_at = entry.written_at
        self._spread(begin_s, _amounts_of(group, self.worked_s - begin_s))

    def steps(self) -> Iterator[Step]:
        """Yield what was done, step by step."""
        count = self._step_at(self.worked_s) + 1 if self.num_drivers else 0
        for index in range(count):
            begin_s = index * self.step_s
            end_s = min(begin_s + self.step_s, self.worked_s)
            if end_s > begin_s or self._amounts[index].any():
                yield Step(begin_s, end_s, self._amounts[index], int(self._begun[index]))

    def whole(self) -> Step:
        """All of it as one step."""
        return Step(0.0, self.worked_s, self._amounts.sum(axis=0), self.num_drivers)

    def stages(self) -> list[StageUse]:
        """What each stage's actors did; empty if the manifest does not tell."""
        whole = self.whole()
        timed_s, frames = whole["timed_s"], whole["timed_frames"]
        if timed_s <= 0:
            return []
        return [_stage_use(stage, whole.account, timed_s, frames) for stage in STAGES]

    def _step_at(self, at_s: float) -> int:
        return min(int(at_s / self.step_s), MAX_STEPS - 1)

    def _spread(self, begin_s: float, amounts: NDArray[np.float64]) -> None:
        first, last = self._step_at(begin_s), self._step_at(self.worked_s)
        edges = np.arange(first, last + 2) * self.step_s
        edges[0], edges[-1] = begin_s, self.worked_s
        lengths = np.diff(edges)
        total = lengths.sum()
        shares = lengths / total if total > 0 else np.eye(1, last - first + 1)[0]
        self._amounts[first : last + 1] += shares[:, None] * amounts

    def _halve(self) -> None:
        """Make each two steps one, so that there is room for as many again."""
        half = MAX_STEPS // 2
        self._amounts[:half] = self._amounts[::2] + self._amounts[1::2]
        self._amounts[half:] = 0
        self._begun[:half] = self._begun[::2] + self._begun[1::2]
        self._begun[half:] = 0
        self.step_s *= 2


def _amounts_of(group: Group, elapsed_s: float) -> NDArray[np.float64]:
    amounts = np.zeros(len(_COLUMNS))
    counts: dict[str, float] = {"clips": group.clips, "frames": group.frames}
    account = group.entry.account
    if account is not None and account.up_s:
        counts |= {"timed_s": elapsed_s, "timed_frames": group.frames}
        for kind, seconds in (("spent", account.spent_s), ("up", account.up_s)):
            counts |= {f"{kind} {one}": value * group.num_entries for one, value in seconds.items()}
    for name, value in counts.items():
        if name in _COLUMNS:  # a later version may tell more
            amounts[_COLUMNS[name]] = value
    return amounts


def _stage_use(stage: Stage, account: Account, timed_s: float, frames: float) -> StageUse:
    up_s = account.up_s[stage]
    spent = {one: account.spent_s[one] for one in OF_STAGE[stage]}
    # Actors that end with the job, or die, told of work that counts, but were not seen to the end.
    known_s = max(up_s, sum(spent.values()))
    working_s = sum(value for one, value in spent.items() if one != "transfer")
    actors = up_s / timed_s
    return StageUse(
        stage,
        actors,
        up_s,
        {one: value / known_s if known_s > 0 else 0.0 for one, value in spent.items()},
        frames / working_s * actors if working_s > 0 and frames else None,
    )
