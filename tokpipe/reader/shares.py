"""How readers share several sources of items in proportion, each item once. Pure arithmetic.

An epoch has a fixed number of items of each source. Readers take turns at each source, as they do
with a single one, and each spreads its items evenly over its epoch. So the items of an epoch do not
depend on the number of readers, and every reader sees them in proportion at any moment.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, count

from tokpipe.reader.order import Remaining, random_bits

_ONE = 2**64  # Times are integers from 0 to this, so no machine rounds them differently


@dataclass(frozen=True, slots=True)
class MixRemaining:
    """The unread part of an epoch, for each of several sources."""

    parts: tuple[Remaining, ...]
    seed: int  # Determines the phases with which each reader begins

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    @property
    def dealt_from(self) -> list[int]:
        """Number of items in the sources before each one: its first item goes to that reader."""
        starts = [0, *accumulate(len(part) for part in self.parts)]
        return starts[:-1]

    def after(self, taken: Sequence[int]) -> "MixRemaining":
        """Return what is left, as ``Remaining.after`` does for one source."""
        number = len(taken)
        counts = [Share(self, k, number).counts(done) for k, done in enumerate(taken)]
        parts = [
            part.after([counts[(k + start) % number][source] for k in range(number)])
            for source, part, start in zip(count(), self.parts, self.dealt_from, strict=False)
        ]
        return MixRemaining(tuple(parts), self.seed)


class Share:
    """What one of several readers takes from what is left of several sources, and in which order.

    Readers take turns at every source. Dealing a source continues with the reader at which the
    source before it stopped, so all readers get the same number of items, or one less. A reader
    spreads its items evenly: at any time, the number it has had of each source is within a few
    items of what is due. Each reader has its own phases; otherwise all would begin with the same
    sources.
    """

    def __init__(self, left: MixRemaining, reader: int, num_readers: int) -> None:
        self._left, self._num_readers = left, num_readers
        self._firsts = [(reader - start) % num_readers for start in left.dealt_from]
        self._sizes = [
            part.num_taken_by(first, num_readers)
            for part, first in zip(left.parts, self._firsts, strict=True)
        ]
        self._phases: list[int] = random_bits(len(left.parts), left.seed, reader).tolist()

    def __len__(self) -> int:
        return sum(self._sizes)

    def next_source(self, counts: Sequence[int]) -> int:
        """Return the source of the item after ``counts`` of each. At least one must be left."""
        left = [source for source, size in enumerate(self._sizes) if counts[source] < size]
        return min(left, key=lambda source: self._time(source, counts[source]))

    def position(self, source: int, count: int) -> int:
        """Return the position of the ``count``-th item that this reader takes from a source."""
        index = self._firsts[source] + count * self._num_readers
        return self._left.parts[source].position(index)

    def counts(self, taken: int) -> list[int]:
        """Return how many of each source are among the first ``taken`` items, in log time."""
        if not 0 <= taken <= len(self):
            raise ValueError(
                f"a reader of {self._num_readers} cannot have taken {taken} of {len(self)} items: "
                "these states were not saved at the same moment of one run"
            )
        time, step = 0, _ONE  # at most ``taken`` items are due before ``time``
        while step:
            if time + step <= _ONE and sum(self._due_before(time + step)) <= taken:
                time += step
            step //= 2
        counts = self._due_before(time)
        while sum(counts) < taken:  # items due exactly at this time
            counts[self.next_source(counts)] += 1
        return counts

    def _time(self, source: int, count: int) -> int:
        """Return when the ``count``-th item of a source is due, from 0 to ``_ONE``."""
        return (count * _ONE + self._phases[source]) // self._sizes[source]

    def _due_before(self, time: int) -> list[int]:
        return [
            min(size, max(0, -((phase - time * size) // _ONE)))
            for size, phase in zip(self._sizes, self._phases, strict=True)
        ]


def quotas(weights: Sequence[float], number: int) -> list[int]:
    """Divide ``number`` items by weight, rounding up where the fractions are largest."""
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise ValueError(f"weights={list(weights)}: each must be finite and above 0")
    exact = [Fraction(weight) for weight in weights]
    due = [number * weight / sum(exact) for weight in exact]
    whole = [math.floor(one) for one in due]
    by_fraction = sorted(range(len(due)), key=lambda k: (whole[k] - due[k], k))
    for k in by_fraction[: number - sum(whole)]:
        whole[k] += 1
    return whole
