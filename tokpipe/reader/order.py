"""In which order a training run sees an output, and what of an epoch is left. Pure arithmetic.

Both are functions of a few numbers, the same on every machine: no rank keeps a list of what all
others have read, and a run may go on with another number of ranks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_KEPT_WINDOWS = 4


class EpochOrder:
    """The items of an epoch, each once: position -> (shard, item of the shard).

    Shuffled, the shards come in an order of their own, and the items of ``window_shards`` shards at
    a time are mixed: so few shards have to be at hand at once. Drawn from the bits of a generator
    whose stream numpy guarantees, and sorted: the same with every version of numpy.
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
        """``sizes`` (shards,): items of each shard.

        Raises:
            ValueError: a window of no shards.
        """
        if window_shards < 1:
            raise ValueError(f"window_shards={window_shards}: a window holds one shard or more")
        self._seed, self._epoch, self._shuffle = seed, epoch, shuffle
        self._shards = self._permutation(len(sizes), 0) if shuffle else np.arange(len(sizes))
        self._window_shards = window_shards if shuffle else 1
        self._sizes = sizes[self._shards]
        per_window = (
            np.add.reduceat(self._sizes, range(0, len(sizes), self._window_shards))
            if len(sizes)
            else np.zeros(0, np.int64)
        )
        self._starts = np.concatenate([[0], np.cumsum(per_window)]).astype(np.int64)
        self._windows: OrderedDict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = OrderedDict()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, position: int) -> tuple[int, int]:
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} of {len(self)}")
        window = int(np.searchsorted(self._starts, position, side="right")) - 1
        shards, items = self._window(window)
        place = position - int(self._starts[window])
        return int(shards[place]), int(items[place])

    def _window(self, window: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(items,) of a window: of which shard each is, and which of its items."""
        if window in self._windows:
            self._windows.move_to_end(window)
            return self._windows[window]
        span = slice(window * self._window_shards, (window + 1) * self._window_shards)
        sizes = self._sizes[span]
        shards = np.repeat(self._shards[span], sizes)
        items = np.concatenate([np.arange(size) for size in sizes])
        if self._shuffle:
            places = self._permutation(len(items), 1 + window)
            shards, items = shards[places], items[places]
        self._windows[window] = shards, items
        if len(self._windows) > _KEPT_WINDOWS:
            self._windows.popitem(last=False)
        return shards, items

    def _permutation(self, number: int, stream: int) -> NDArray[np.int64]:
        return np.argsort(random_bits(number, self._seed, self._epoch, stream), kind="stable")


def random_bits(number: int, *seeds: int | Sequence[int]) -> NDArray[np.uint64]:
    """(number,) drawn from all 64 bits, the same on every machine."""
    sequence = np.random.SeedSequence(seeds)
    bits: NDArray[np.uint64] = np.random.PCG64(sequence).random_raw(number)
    return bits


@dataclass(frozen=True, slots=True)
class Remaining:
    """What of an epoch is still to be read: some positions, and all from ``start`` on.

    Readers share it out by turns: of ``n`` readers, the ``k``-th takes the items ``k``, ``k + n``
    and so on. How far each came is all that has to be known to go on, with any number of readers.
    """

    num_items: int
    """Of the whole epoch."""
    start: int = 0
    pending: tuple[int, ...] = ()
    """Positions before ``start`` that no reader has taken."""

    def __len__(self) -> int:
        return len(self.pending) + self.num_items - self.start

    def position(self, index: int) -> int:
        """Position in the epoch's order of the ``index``-th item that is left."""
        if index < len(self.pending):
            return self.pending[index]
        return self.start + index - len(self.pending)

    def num_taken_by(self, reader: int, num_readers: int) -> int:
        """How many items one of so many readers takes until nothing is left."""
        return max(0, -(-(len(self) - reader) // num_readers))

    def after(self, taken: Sequence[int]) -> Remaining:
        """What is left once reader ``k`` of ``len(taken)`` has taken ``taken[k]`` items.

        Raises:
            ValueError: a reader has taken more than there is for it.
        """
        number = len(taken)
        for reader, count in enumerate(taken):
            if not 0 <= count <= self.num_taken_by(reader, number):
                raise ValueError(
                    f"reader {reader} of {number} cannot have taken {count} of {len(self)} items: "
                    "these states are not those of one moment of one run"
                )
        rounds = min(taken)
        end = max(
            (reader + (count - 1) * number + 1 for reader, count in enumerate(taken) if count),
            default=0,
        )
        left = [i for i in range(rounds * number, end) if i // number >= taken[i % number]]
        pending = [self.position(index) for index in left]
        if end < len(self.pending):
            return Remaining(self.num_items, self.start, (*pending, *self.pending[end:]))
        return Remaining(self.num_items, self.start + end - len(self.pending), tuple(pending))
