"""How readers share out several sources of items, in proportion, each item once. Pure arithmetic.

What an epoch has of each source is fixed. Readers deal out each source by turns, as they do with a
single one, and each puts its shares into one order, evenly spread. So which items an epoch has is
the same for any number of readers, and in proportion each of them is at every moment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate

from tokpipe.reader.order import Remaining, random_bits

_ONE = 2**64
"""Times are whole numbers, so that no machine rounds them otherwise."""


@dataclass(frozen=True, slots=True)
class MixRemaining:
    """What of an epoch is still to be read of each of several sources."""

    parts: tuple[Remaining, ...]
    seed: int
    """Decides in which phase each reader begins."""

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    @property
    def dealt_from(self) -> list[int]:
        """Items of all sources before each one: its dealing begins with that reader."""
        starts = [0, *accumulate(len(part) for part in self.parts)]
        return starts[:-1]

    def after(self, taken: Sequence[int]) -> MixRemaining:
        """What is left once reader ``k`` of ``len(taken)`` has taken ``taken[k]`` items.

        Raises:
            ValueError: a reader has taken more than there is for it.
        """
        number = len(taken)
        counts = [Share(self, k, number).counts(done) for k, done in enumerate(taken)]
        return MixRemaining(
            tuple(
                part.after([counts[(k + start) % number][source] for k in range(number)])
                for source, (part, start) in enumerate(
                    zip(self.parts, self.dealt_from, strict=True)
                )
            ),
            self.seed,
        )


class Share:
    """What one of several readers takes of what is left of several sources, and in which order.

    Of every source it takes its share by turns; the dealing of a source goes on where that of the
    source before it stopped, so that all readers take as many in all, or one less. Its own items
    it has evenly spread: at any time it has had of each source what is due, give or take a few.
    Without more, all readers would begin with the same sources, so each has phases of its own.
    """

    def __init__(self, left: MixRemaining, reader: int, num_readers: int) -> None:
        self._left, self._num_readers = left, num_readers
        self._firsts = [(reader - start) % num_readers for start in left.dealt_from]
        self._sizes = [
            part.num_taken_by(first, num_readers)
            for part, first in zip(left.parts, self._firsts, strict=True)
        ]
        bits = random_bits(len(left.parts), left.seed, reader)
        self._phases = [int(phase) for phase in bits]

    def __len__(self) -> int:
        return sum(self._sizes)

    def next_source(self, counts: Sequence[int]) -> int:
        """From which source the next item is, after ``counts`` of each. There must be one left."""
        due = [
            (self._time(source, count), source)
            for source, count in enumerate(counts)
            if count < self._sizes[source]
        ]
        return min(due)[1]

    def position(self, source: int, count: int) -> int:
        """Position of the ``count``-th item that this reader takes of a source."""
        index = self._firsts[source] + count * self._num_readers
        return self._left.parts[source].position(index)

    def counts(self, taken: int) -> list[int]:
        """How many of each source are among the first ``taken`` items, by no more than a search.

        Raises:
            ValueError: there are not so many.
        """
        if not 0 <= taken <= len(self):
            raise ValueError(
                f"a reader of {self._num_readers} cannot have taken {taken} of {len(self)} items: "
                "these states are not those of one moment of one run"
            )
        low, high = 0, _ONE + 1  # no more than ``taken`` items are due before ``low``
        while high - low > 1:
            middle = (low + high) // 2
            if sum(self._due_before(middle)) <= taken:
                low = middle
            else:
                high = middle
        counts = self._due_before(low)
        while sum(counts) < taken:  # those that are due at this very time
            counts[self.next_source(counts)] += 1
        return counts

    def _time(self, source: int, count: int) -> int:
        """When the ``count``-th item of a source is due: 0 to ``_ONE``, over all of them."""
        return (count * _ONE + self._phases[source]) // self._sizes[source]

    def _due_before(self, time: int) -> list[int]:
        return [
            min(size, max(0, -((phase - time * size) // _ONE)))
            for size, phase in zip(self._sizes, self._phases, strict=True)
        ]


def quotas(weights: Sequence[float], number: int) -> list[int]:
    """``number`` items divided by weight, to whole ones: the largest fractions are rounded up.

    Raises:
        ValueError: a weight is not above 0, or not finite.
    """
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise ValueError(f"weights={list(weights)}: each is a number above 0")
    exact = [Fraction(weight) for weight in weights]
    due = [number * weight / sum(exact) for weight in exact]
    whole = [math.floor(one) for one in due]
    by_fraction = sorted(range(len(due)), key=lambda k: (whole[k] - due[k], k))
    for k in by_fraction[: number - sum(whole)]:
        whole[k] += 1
    return whole
