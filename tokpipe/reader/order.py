"""The order of an epoch, what is left of it, and how readers share it. Pure arithmetic.

All depend on a few numbers only and are the same on every machine. No rank has to know what the
others have read, and a run can resume with another number of ranks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Even = Literal["drop", "repeat"]

_KEPT_WINDOWS = 4
_ONE = 2**64  # Times are integers from 0 to this, so no machine rounds them differently


class EpochOrder:
    """The items of an epoch, each once: position -> (shard, item of the shard).

    Shuffling permutes the shards, then mixes the items of ``window_shards`` shards at a time, so
    only a few shards are needed at once. Permutations sort the raw bits of a generator whose stream
    numpy guarantees, so they are the same in every version of numpy.
    """

    def __init__(
        self,
        sizes: NDArray[np.int64],
        *,
        seed: int | Sequence[int] = 0,
        epoch: int = 0,
        shuffle: bool | Literal["windows"] = True,
        window_shards: int = 8,
        num_parts: int = 1,
    ) -> None:
        """``sizes`` (shards,): items of each shard. ``window_shards`` below 1: ValueError.

        With ``num_parts``, windows end where equal parts of the order do: a node that reads part
        ``k``, the positions from ``k * len // num_parts`` on, needs no shard only for others.
        With ``shuffle="windows"``, shards keep their order: further ones change no full window.
        """
        if window_shards < 1:
            raise ValueError(f"window_shards={window_shards}: must be at least 1")
        self._seed, self._epoch, self._shuffle = seed, epoch, bool(shuffle)
        is_permuted = shuffle is True
        self._shards = self._permutation(len(sizes), 0) if is_permuted else np.arange(len(sizes))
        self._shards = self._shards[sizes[self._shards] > 0]
        self._shard_starts = np.append(0, np.cumsum(sizes[self._shards], dtype=np.int64))
        total, starts = int(self._shard_starts[-1]), list[int]()
        for part in range(num_parts):
            first, last = part * total // num_parts, (part + 1) * total // num_parts
            inner = self._shard_starts[self._places(first) : -1 : window_shards if shuffle else 1]
            starts += [max(first, start) for start in inner.tolist() if start < last]
        self._starts = np.array([*starts, total], np.int64)
        self._window = lru_cache(_KEPT_WINDOWS)(self._make_window)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, position: int) -> tuple[int, int]:
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} of {len(self)}")
        window = self.window_of(position)
        shards, items = self._window(window)
        place = position - int(self._starts[window])
        return int(shards[place]), int(items[place])

    def window_of(self, position: int) -> int:
        """Return the number of the window that holds a position."""
        return int(np.searchsorted(self._starts, position, side="right")) - 1

    def shards_of(self, window: int, end: int) -> list[int]:
        """Return the shards of a window and of the next one, if that begins before ``end``."""
        last = window + 1 + (self._starts[window + 1] < min(end, len(self)))
        first_place, last_place = self._places(self._starts[[window, last]] - [0, 1])
        shards: list[int] = self._shards[first_place : last_place + 1].tolist()
        return shards

    def _places(self, positions: Any) -> Any:
        """Return where the shards of positions stand in the order of shards."""
        return np.searchsorted(self._shard_starts, positions, side="right") - 1

    def _make_window(self, window: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (items,) the shard of each item of a window, and its place in the shard."""
        positions = np.arange(*self._starts[window : window + 2])
        if self._shuffle:
            positions = positions[self._permutation(len(positions), 1 + window)]
        places = self._places(positions)
        return self._shards[places], positions - self._shard_starts[places]

    def _permutation(self, number: int, stream: int) -> NDArray[np.int64]:
        return np.argsort(random_bits(number, self._seed, self._epoch, stream), kind="stable")


def random_bits(number: int, *seeds: int | Sequence[int]) -> NDArray[np.uint64]:
    """Draw (number,) random 64-bit integers, the same on every machine."""
    sequence = np.random.SeedSequence(seeds)
    bits: NDArray[np.uint64] = np.random.PCG64(sequence).random_raw(number)
    return bits


@dataclass(frozen=True, slots=True)
class Remaining:
    """The unread part of an epoch, or of a node's part of it, for each of several sources.

    ``n`` readers take turns at the items of one source after another: reader ``k`` takes the items
    ``k``, ``k + n`` and so on. So an epoch has the same items for any number of readers, and the
    number of items that each has taken is enough to resume.
    """

    ends: Sequence[int]  # Of each source, the position after its last one
    start: Sequence[int]  # Of each, all positions from here on are left
    pending: Sequence[Sequence[int]]  # And these positions before
    seed: int  # Determines the phases with which each reader begins

    def __post_init__(self) -> None:
        for pending, start, end in zip(self.pending, self.start, self.ends, strict=True):
            places = [*pending, start, end + 1]
            if any(one >= later for one, later in pairwise(places)):
                raise ValueError(f"{places[:9]} ... are not increasing positions in an epoch")

    def __len__(self) -> int:
        return sum(self.sizes)

    @property
    def sizes(self) -> list[int]:
        """Number of items that are left of each source."""
        parts = zip(self.pending, self.start, self.ends, strict=True)
        return [len(pending) + end - start for pending, start, end in parts]

    @property
    def dealt_from(self) -> list[int]:
        """Number of items in the sources before each one: its first item goes to that reader."""
        return list(accumulate(self.sizes[:-1], initial=0))

    def position(self, source: int, index: int) -> int:
        """Return the position in the epoch of the ``index``-th item that is left of a source."""
        pending = self.pending[source]
        if index < len(pending):
            return pending[index]
        return self.start[source] + index - len(pending)

    def state(self) -> dict[str, list[Any]]:
        """Return this as plain values."""
        return {"start": list(self.start), "pending": [list(one) for one in self.pending]}

    def after(self, taken: Sequence[int]) -> "Remaining":
        """Return what is left once reader ``k`` of ``len(taken)`` has taken ``taken[k]`` items."""
        number, starts, pending = len(taken), list[int](), list[list[int]]()
        counts = [Share(self, k, number).counts(done) for k, done in enumerate(taken)]
        for source, first in enumerate(self.dealt_from):
            done = [counts[(k + first) % number][source] for k in range(number)]
            end = max((k + (n - 1) * number + 1 for k, n in enumerate(done) if n), default=0)
            left = [i for i in range(min(done) * number, end) if i // number >= done[i % number]]
            earlier = self.pending[source]
            pending.append([*(self.position(source, i) for i in left), *earlier[end:]])
            starts.append(self.start[source] + max(0, end - len(earlier)))
        return Remaining(self.ends, starts, pending, self.seed)


class Share:
    """What one of several readers takes from what is left of several sources, and in which order.

    Readers take turns from one source to the next, so all get the same number of items, or one
    less. A reader spreads its items evenly: at any time, the number it has had of each source is
    within a few items of what is due. Phases differ, or all would begin with the same sources.

    With ``even``, all readers get the same number of items. ``"drop"`` leaves out the last item of
    those that have one more; those that have one less read an item twice with ``"repeat"``.
    """

    def __init__(
        self, left: Remaining, reader: int, num_readers: int, even: Even | None = None
    ) -> None:
        self.left, self.num_readers, self.even = left, num_readers, even
        self._reader = reader
        self._firsts = [(reader - start) % num_readers for start in left.dealt_from]
        parts = zip(left.sizes, self._firsts, strict=True)
        self._sizes = [-((first - size) // num_readers) for size, first in parts]
        self._phases: list[int] = random_bits(len(left.ends), left.seed, reader).tolist()

    def __len__(self) -> int:
        if self.even == "drop":
            return len(self.left) // self.num_readers
        return self._most if self.even == "repeat" else sum(self._sizes)

    @property
    def _most(self) -> int:
        return -(-len(self.left) // self.num_readers)

    def item(self, counts: Sequence[int]) -> tuple[int, int]:
        """Return source and position of the item after ``counts`` of each."""
        left = [source for source, size in enumerate(self._sizes) if counts[source] < size]
        if not left:
            # Its own first item again or, if it has none, that of another reader.
            other = self._reader if any(counts) else self._reader % len(self.left)
            return Share(self.left, other, self.num_readers).item([0] * len(counts))

        def due(source: int) -> int:
            """Return when the source's next item is due, from 0 to ``_ONE``."""
            return (counts[source] * _ONE + self._phases[source]) // self._sizes[source]

        source = min(left, key=due)
        index = self._firsts[source] + counts[source] * self.num_readers
        return source, self.left.position(source, index)

    def counts(self, taken: int) -> list[int]:
        """Count the first ``taken`` items by source, in log time. One read twice counts once."""
        if not 0 <= taken <= self._most:
            found = f"a reader of {self.num_readers} cannot have taken {taken} of {self._most}"
            why = "these states were not saved at the same moment of one run"
            raise ValueError(f"{found} items: {why}")
        taken = min(taken, sum(self._sizes))
        time, step = 0, _ONE  # at most ``taken`` items are due before ``time``
        while step:
            if time + step <= _ONE and sum(self._due_before(time + step)) <= taken:
                time += step
            step //= 2
        counts = self._due_before(time)
        while sum(counts) < taken:  # items due exactly at this time
            counts[self.item(counts)[0]] += 1
        return counts

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
    by_fraction = sorted(range(len(due)), key=lambda k: whole[k] - due[k])
    for k in by_fraction[: number - sum(whole)]:
        whole[k] += 1
    return whole
