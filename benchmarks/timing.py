"""Fair comparison of pieces of code on a machine that is shared and noisy."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of every round, in order."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def best(self) -> float:
        return min(self.seconds)

    def divided_by(self, number: int) -> "Times":
        """Of each of ``number`` calls that were timed together."""
        return Times(tuple(seconds / number for seconds in self.seconds))


def by_turns(
    contestants: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 5,
    warmups: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Times]:
    """Time each contestant ``rounds`` times, all of them in every round.

    Whatever slows the machine down for a while then affects all of them. The order rotates, so that
    none always runs after the same one. Warm-ups are not timed.
    """
    for call in contestants.values():
        for _ in range(warmups):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            started = clock()
            contestants[name]()
            seconds[name].append(clock() - started)
    return {name: Times(tuple(times)) for name, times in seconds.items()}


def ratio(slow: Times, fast: Times) -> float:
    """How many times faster ``fast`` is: the median over the rounds of the ratio within each."""
    pairs = zip(slow.seconds, fast.seconds, strict=True)
    return statistics.median(one / other for one, other in pairs)
