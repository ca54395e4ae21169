"""How near a job is to the speed of its encoders, and what keeps it from being nearer."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tokpipe.types import STAGES, Stage

Activity = Literal["download", "decode", "transfer", "encode", "write"]
ACTIVITIES: tuple[Activity, ...] = ("download", "decode", "transfer", "encode", "write")
"""What actors spend their seconds on. ``transfer``: an encoder had a lease and did not compute,
because its pixels were on their way, or the lease was."""

OF_STAGE: Mapping[Stage, tuple[Activity, ...]] = {
    "decode": ("download", "decode"),
    "encode": ("transfer", "encode"),
    "write": ("write",),
}
AS_BUSY = 0.02
"""Shares that differ by less are the same: encoders are then named, since they cannot be helped."""
IDLE = 0.5
"""A stage that works less than this does not limit anything."""


@dataclass(frozen=True, slots=True)
class Seconds:
    """Seconds of all actors together: spent by activity, and up by stage."""

    spent: Mapping[Activity, float] = field(default_factory=dict)
    up: Mapping[Stage, float] = field(default_factory=dict)

    def since(self, earlier: Seconds) -> Seconds:
        """What came after ``earlier``."""
        return Seconds(
            {one: self.spent.get(one, 0.0) - earlier.spent.get(one, 0.0) for one in ACTIVITIES},
            {one: self.up.get(one, 0.0) - earlier.up.get(one, 0.0) for one in STAGES},
        )


@dataclass(frozen=True, slots=True)
class Speed:
    """Where a job stands between idle and the speed of light."""

    share: float
    """Share of the time of encoders in which they computed: what part of its encoders' own speed
    the whole job reaches."""
    limit: Activity | None
    """What to have more of for more speed; None if no stage is busy, as while a job starts."""
    limit_share: float
    """Share of their time that the limiting stage's actors were busy with all they do."""


def speed_of(seconds: Seconds) -> Speed | None:
    """The limiting stage is the one whose actors are busiest; within it, what takes them longest.

    None before any encoder is up.
    """
    if seconds.up.get("encode", 0.0) <= 0:
        return None
    busy = busy_shares(seconds)
    share = min(1.0, seconds.spent.get("encode", 0.0) / seconds.up["encode"])
    most = max(busy.values())
    if most < IDLE:
        return Speed(share, None, most)
    stage = max(STAGES, key=lambda one: busy[one])
    if busy["encode"] >= most - AS_BUSY:
        stage = "encode"
    limit = max(OF_STAGE[stage], key=lambda one: seconds.spent.get(one, 0.0))
    return Speed(share, limit, busy[stage])


def busy_shares(seconds: Seconds) -> dict[Stage, float]:
    """Share of their time, from 0 to 1, that the actors of each stage were busy."""
    busy: dict[Stage, float] = {}
    for stage in STAGES:
        spent = sum(seconds.spent.get(one, 0.0) for one in OF_STAGE[stage])
        up = seconds.up.get(stage, 0.0)
        # What is told when a lease ends was in part spent before the window began.
        busy[stage] = min(1.0, spent / up) if up > 0 else 0.0
    return busy


class RecentSeconds:
    """What actors spent over the last while. A slow start does not stay in it."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._points: deque[tuple[float, Seconds]] = deque()

    def add(self, now: float, seconds: Seconds) -> Seconds:
        """Take in all that was spent by ``now``, and return what of it is recent."""
        self._points.append((now, seconds))
        while len(self._points) > 2 and self._points[1][0] < now - self._window_s:
            self._points.popleft()
        return seconds.since(self._points[0][1])


def speed_text(speed: Speed) -> str:
    """One line for people: ``speed of light 97%, limited by encode (busy 98%)``."""
    if speed.limit is None:
        why = "no stage is busy for long"
    elif speed.limit == "encode":
        why = f"limited by encode (busy {speed.limit_share:.0%}): as fast as its encoders"
    else:
        why = f"limited by {speed.limit} (busy {speed.limit_share:.0%})"
    return f"speed of light {speed.share:.0%}, {why}"
