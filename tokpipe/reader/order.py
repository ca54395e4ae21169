"""The order of an epoch, and the part of it that is left. Pure arithmetic.

Both depend on a few numbers only and are the same on every machine. No rank has to know what the
others have read, and a run can resume with another number of ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

_KEPT_WINDOWS = 4


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
        shuffle: bool = True,
        window_shards: int = 8,
    ) -> None:
        """``sizes`` (shards,): items of each shard. ``window_shards`` below 1: ValueError."""
        if window_shards < 1:
            raise ValueError(f"window_shards={window_shards}: must be at least 1")
        self._seed, self._epoch, self._shuffle = seed, epoch, shuffle
        self._shards = self._permutation(len(sizes), 0) if shuffle else np.arange(len(sizes))
        self._window_shards = window_shards if shuffle else 1
        self._sizes = sizes[self._shards]
        starts = np.concatenate([[0], np.cumsum(self._sizes, dtype=np.int64)])
        self._starts = np.append(starts[: -1 : self._window_shards], starts[-1])
        self._window = lru_cache(_KEPT_WINDOWS)(self._make_window)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, position: int) -> tuple[int, int]:
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} of {len(self)}")
        window = int(np.searchsorted(self._starts, position, side="right")) - 1
        shards, items = self._window(window)
        place = position - int(self._starts[window])
        return int(shards[place]), int(items[place])

    def _make_window(self, window: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (items,) the shard of each item of a window, and its place in the shard."""
        span = slice(window * self._window_shards, (window + 1) * self._window_shards)
        sizes = self._sizes[span]
        shards = np.repeat(self._shards[span], sizes)
        items = np.concatenate([np.arange(size) for size in sizes])
        if self._shuffle:
            places = self._permutation(len(items), 1 + window)
            shards, items = shards[places], items[places]
        return shards, items

    def _permutation(self, number: int, stream: int) -> NDArray[np.int64]:
        return np.argsort(random_bits(number, self._seed, self._epoch, stream), kind="stable")


def random_bits(number: int, *seeds: int | Sequence[int]) -> NDArray[np.uint64]:
    """Draw (number,) random 64-bit integers, the same on every machine."""
    sequence = np.random.SeedSequence(seeds)
    bits: NDArray[np.uint64] = np.random.PCG64(sequence).random_raw(number)
    return bits


@dataclass(frozen=True, slots=True)
class Remaining:
    """The unread part of an epoch: some pending positions, and all from ``start`` on.

    ``n`` readers take turns: reader ``k`` takes the items ``k``, ``k + n`` and so on. So the number
    of items that each has taken is enough to resume, with any number of readers.
    """

    num_items: int  # Items of the whole epoch
    start: int = 0
    pending: tuple[int, ...] = ()  # Positions before ``start`` that no reader has taken

    def __post_init__(self) -> None:
        places = [*self.pending, self.start, self.num_items + 1]
        if any(one >= later for one, later in pairwise(places)):
            raise ValueError(f"{places[:9]} ... are not increasing positions in an epoch")

    def __len__(self) -> int:
        return len(self.pending) + self.num_items - self.start

    def position(self, index: int) -> int:
        """Return the position in the epoch of the ``index``-th item that is left."""
        if index < len(self.pending):
            return self.pending[index]
        return self.start + index - len(self.pending)

    def num_taken_by(self, reader: int, num_readers: int) -> int:
        """Return how many items one of ``num_readers`` readers takes until nothing is left."""
        return max(0, -(-(len(self) - reader) // num_readers))

    def after(self, taken: Sequence[int]) -> "Remaining":
        """Return what is left once reader ``k`` of ``len(taken)`` has taken ``taken[k]`` items."""
        number = len(taken)
        for reader, count in enumerate(taken):
            if not 0 <= count <= self.num_taken_by(reader, number):
                raise ValueError(
                    f"reader {reader} of {number} cannot have taken {count} of {len(self)} items: "
                    "these states were not saved at the same moment of one run"
                )
        rounds, ends = min(taken), [k + (n - 1) * number + 1 for k, n in enumerate(taken) if n]
        end = max(ends, default=0)
        left = [i for i in range(rounds * number, end) if i // number >= taken[i % number]]
        pending = [self.position(index) for index in left]
        if end < len(self.pending):
            return Remaining(self.num_items, self.start, (*pending, *self.pending[end:]))
        return Remaining(self.num_items, self.start + end - len(self.pending), tuple(pending))
