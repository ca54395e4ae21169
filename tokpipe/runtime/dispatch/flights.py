"""Attempts that are in flight, and the outputs of attempts that are still needed."""

from collections import Counter
from collections.abc import Iterable

from tokpipe.runtime.dispatch.outbox import Outbox
from tokpipe.runtime.dispatch.protocol import AttemptId, Dispatch, Place, Release
from tokpipe.types import Stage


class Flights:
    """Knows every attempt in flight, and how many clips of each kept output are still unread.

    An output is released with its last clip.
    """

    def __init__(self, out: Outbox) -> None:
        self._out = out
        self.attempts: dict[AttemptId, Dispatch] = {}
        self._num: Counter[Stage] = Counter()
        self._unread: Counter[AttemptId] = Counter()

    def start(self, flight: Dispatch) -> None:
        self.attempts[flight.attempt] = flight
        self._num[flight.lease.stage] += 1

    def end(self, attempt: AttemptId) -> Dispatch | None:
        """End an attempt and return it; None if it was abandoned, so its answer does not count."""
        if (flight := self.attempts.pop(attempt, None)) is not None:
            self._num[flight.lease.stage] -= 1
        return flight

    def num(self, stage: Stage) -> int:
        """Number of attempts of a stage in flight."""
        return self._num[stage]

    def keep(self, attempt: AttemptId, num_clips: int) -> None:
        """Keep an output until this many of its clips are used; with 0, release it now."""
        if num_clips:
            self._unread[attempt] = num_clips
        else:
            self._out.emit(Release(attempt))

    def use_up(self, places: Iterable[Place]) -> None:
        """What is at these places is no longer needed."""
        for source, _ in places:
            self._unread[source] -= 1
            if not self._unread[source]:
                del self._unread[source]
                self._out.emit(Release(source))
