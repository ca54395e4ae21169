"""Clips for a training run: shuffled, shared out over ranks and workers, resumable to the clip."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from tokpipe.errors import ConfigError
from tokpipe.reader.code_cache import CodeCache
from tokpipe.reader.order import EpochOrder, Remaining
from tokpipe.reader.shard_codes import Codes, ShardCodes

Sample = dict[str, Any]
"""``clip_id``, and ``codes`` (t, h, w) as int64."""

_FORMAT = "tokpipe.clip_stream.1"


def sample_of(clip_id: str, codes: Codes) -> Sample:
    """What a stream gives of a clip, unless told otherwise."""
    return {"clip_id": clip_id, "codes": codes.astype(np.int64)}


class ClipStream:
    """All clips of an output, each once an epoch: an iterable dataset for a data loader.

    The order is a function of ``seed`` and epoch alone. Readers (the workers of all ranks) take
    clips from it by turns, so that no two see the same and none is lost. A reader's state is how
    many it has taken; the states of all readers together say what is left, for any number of them.

    On its own it is read by one reader per rank; ``tokpipe.reader.dataset.ClipDataset`` gives it to
    the workers of a PyTorch loader.

    Args:
        cache: the output's codes on local disk, which the workers of a node share.
        seed: decides the order of every epoch.
        shuffle: False gives clips in the order of the manifest.
        window_shards: shards whose clips are mixed with each other.
        rank: which of ``world_size`` processes this is.
        make: clip id and codes (t, h, w), read-only, to what the stream gives.

    Raises:
        ConfigError: a rank outside the world.
    """

    def __init__(
        self,
        cache: CodeCache,
        *,
        seed: int = 0,
        shuffle: bool = True,
        window_shards: int = 8,
        rank: int = 0,
        world_size: int = 1,
        make: Callable[[str, Codes], Any] = sample_of,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank={rank} is none of the {world_size} ranks, 0 and on")
        self.cache = cache
        self.rank, self.world_size = rank, world_size
        self._make = make
        self._settings = {"seed": seed, "shuffle": shuffle, "window_shards": window_shards}
        self._sizes = cache.clip_counts
        self._num_clips = int(self._sizes.sum())
        self.set_epoch(0)

    @property
    def epoch(self) -> int:
        """The epoch that is read, or will be."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch; what is left of another is forgotten."""
        self._epoch = epoch
        self._left = Remaining(self._num_clips)

    def __len__(self) -> int:
        """Clips that all ranks together have left in this epoch."""
        return len(self._left)

    def __iter__(self) -> ClipIterator:
        worker, num_workers = _worker()
        return ClipIterator(
            self, reader=self.rank * num_workers + worker, num_readers=self.world_size * num_workers
        )

    def resume(self, states: Iterable[Any]) -> None:
        """Go on where the readers of another run stopped, however many they were.

        Args:
            states: of all its readers: ``ClipIterator.state_dict()``, or what holds them, such as
                the ``state_dict`` of each rank's ``StatefulDataLoader``.

        Raises:
            ConfigError: a state is missing, or they are of another output, order or epoch.
        """
        found = [state for one in states for state in _states_in(one)]
        if not found:
            raise ConfigError("resume: there is no state of a clip stream in what was given")
        first = found[0]
        self._check(first)
        for state in found:
            for key in ("epoch", "start", "pending", "num_readers"):
                if state[key] != first[key]:
                    raise ConfigError(
                        f"resume: of two states, one has {key}={first[key]} and one {state[key]}: "
                        "they are not of one moment of one run. Clips would be lost or doubled"
                    )
        taken = {state["reader"]: state["taken"] for state in found}
        if sorted(taken) != list(range(first["num_readers"])):
            raise ConfigError(
                f"resume: states of {len(taken)} readers were given, and there were "
                f"{first['num_readers']}. What the others have read is not known: give the states "
                "of all ranks"
            )
        self._epoch = first["epoch"]
        left = self._left_of(first)
        self._left = left.after([taken[reader] for reader in range(first["num_readers"])])

    def _left_of(self, state: Mapping[str, Any]) -> Remaining:
        return Remaining(self._num_clips, state["start"], tuple(state["pending"]))

    def _check(self, state: Mapping[str, Any]) -> None:
        wanted = {**self._settings, "num_items": self._num_clips}
        for key, value in wanted.items():
            if state[key] != value:
                raise ConfigError(
                    f"the state has {key}={state[key]}, and this stream {value}: they do not read "
                    "the same clips in the same order. Open the output as far as it was then, with "
                    "the same settings"
                )

    def _order(self) -> EpochOrder:
        return EpochOrder(self._sizes, epoch=self._epoch, **self._settings)  # type: ignore[arg-type]


class ClipIterator(Iterator[Any]):
    """What one reader takes of an epoch."""

    def __init__(self, stream: ClipStream, *, reader: int, num_readers: int) -> None:
        self._stream = stream
        self._reader, self._num_readers = reader, num_readers
        self._taken = 0
        self._begin()

    def _begin(self) -> None:
        self._left = self._stream._left
        self._epoch = self._stream.epoch
        self._order = self._stream._order()

    def __next__(self) -> Any:
        index = self._reader + self._taken * self._num_readers
        if index >= len(self._left):
            raise StopIteration
        shard, item = self._order[self._left.position(index)]
        clip_id, codes = clip_of(self._stream.cache.shard(shard), item)
        self._taken += 1
        return self._stream._make(clip_id, codes)

    def state_dict(self) -> dict[str, Any]:
        """How far this reader came, as plain values."""
        return {
            "format": _FORMAT,
            **self._stream._settings,
            "num_items": self._left.num_items,
            "epoch": self._epoch,
            "start": self._left.start,
            "pending": list(self._left.pending),
            "reader": self._reader,
            "num_readers": self._num_readers,
            "taken": self._taken,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a reader of the same number among as many stopped.

        Raises:
            ConfigError: it was another, or of another stream. ``ClipStream.resume`` takes the
                states of any number of readers.
        """
        self._stream._check(state)
        place = state["reader"], state["num_readers"]
        if place != (self._reader, self._num_readers):
            raise ConfigError(
                f"this is reader {self._reader} of {self._num_readers}, and the state is of reader "
                f"{place[0]} of {place[1]}: use ClipStream.resume with the states of all of them"
            )
        self._stream._epoch = state["epoch"]
        self._stream._left = self._stream._left_of(state)
        self._begin()
        self._taken = state["taken"]


def clip_of(shard: ShardCodes, number: int) -> tuple[str, Codes]:
    """Id and codes (t, h, w) of a shard's clip, all its chunks one after the other in time."""
    starts = shard.clip_starts
    first, last = int(starts[number]), int(starts[number + 1])
    clip_id: str = shard.rows.column("clip_id")[first].as_py()
    blocks = [shard[row] for row in range(first, last)]
    if len(blocks) == 1:
        return clip_id, blocks[0]
    joined: Any = np.concatenate(blocks)
    return clip_id, joined


def _states_in(value: Any) -> Iterator[Mapping[str, Any]]:
    """Find the states of readers in what a loader made of them."""
    if isinstance(value, Mapping):
        if value.get("format") == _FORMAT:
            yield value
            return
        for inner in value.values():
            yield from _states_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _states_in(inner)


def _worker() -> tuple[int, int]:
    """Which worker of a data loader this process is, of how many."""
    data = sys.modules.get("torch.utils.data")  # whoever is its worker has it loaded
    info = None if data is None else data.get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)
