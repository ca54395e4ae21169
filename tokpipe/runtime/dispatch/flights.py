"""Attempts that are in flight, and the outputs of attempts that are still needed."""

from collections import Counter
from collections.abc import Iterable, Sequence

from tokpipe.runtime.dispatch.outbox import Outbox
from tokpipe.runtime.dispatch.protocol import AttemptId, Dispatch, Place, Release
from tokpipe.types import Stage


class Flights:
    """Knows every attempt in flight, and how many clips of each kept output are still unread.

    A part of an output is released with its last clip.
    """

    def __init__(self, out: Outbox) -> None:
        self._out = out
        self.attempts: dict[AttemptId, Dispatch] = {}
        self.num: Counter[Stage] = Counter()  # Of them by stage
        self._unread: dict[AttemptId, Counter[int]] = {}  # By part of the output

    def start(self, flight: Dispatch) -> None:
        self.attempts[flight.attempt] = flight
        self.num[flight.lease.stage] += 1

    def end(self, attempt: AttemptId) -> Dispatch | None:
        """End an attempt and return it; None if it was abandoned, so its answer does not count."""
        if (flight := self.attempts.pop(attempt, None)) is not None:
            self.num[flight.lease.stage] -= 1
        return flight

    def keep(self, attempt: AttemptId, places: Sequence[Place]) -> None:
        """Keep what is at these places until it is used; without any, release the output now."""
        if places:
            self._unread[attempt] = Counter(place.part for place in places)
        else:
            self._out.emit(Release(attempt))

    def use_up(self, places: Iterable[Place]) -> None:
        """What is at these places is no longer needed."""
        for source, _, part in places:
            unread = self._unread[source]
            unread[part] -= 1
            if not unread.total():
                del self._unread[source]
                self._out.emit(Release(source))
            elif not unread[part]:
                self._out.emit(Release(source, part=part))
