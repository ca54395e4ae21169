"""Attempts that are in flight, and the outputs of attempts that are still needed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tokpipe.runtime.dispatch.protocol import ActorId, AttemptId, Emit, Lease, Pick, Release
from tokpipe.types import Stage


@dataclass(frozen=True, slots=True)
class Flight:
    """One attempt: which lease which actor holds."""

    lease: Lease
    actor: ActorId


class Flights:
    """Knows every attempt in flight, and how many clips of each kept output are still unread.

    An output is released with its last clip. An attempt that is not in flight is not listened to.
    """

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._flights: dict[AttemptId, Flight] = {}
        self._num: Counter[Stage] = Counter()
        self._unread: Counter[AttemptId] = Counter()

    def start(self, attempt: AttemptId, lease: Lease, actor: ActorId) -> None:
        self._flights[attempt] = Flight(lease, actor)
        self._num[lease.stage] += 1

    def find(self, attempt: AttemptId) -> Flight | None:
        """None for an attempt that was given up."""
        return self._flights.get(attempt)

    def end(self, attempt: AttemptId) -> Lease:
        """The attempt has an outcome, or is given up; return its lease."""
        lease = self._flights.pop(attempt).lease
        self._num[lease.stage] -= 1
        return lease

    def num(self, stage: Stage) -> int:
        """Attempts of a stage that are in flight."""
        return self._num[stage]

    def keep(self, attempt: AttemptId, num_clips: int) -> None:
        """Keep an output until so many clips of it are used up; release it now if none is."""
        if num_clips:
            self._unread[attempt] = num_clips
        else:
            self._emit(Release(attempt))

    def use_up(self, pick: Pick) -> None:
        """Nobody needs these clips of an output any more."""
        if not pick.positions:
            return
        self._unread[pick.source] -= len(pick.positions)
        if self._unread[pick.source] == 0:
            del self._unread[pick.source]
            self._emit(Release(pick.source))
