"""Clips for a training run: shuffled, shared out over ranks and workers, resumable to the clip."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from tokpipe.errors import ConfigError
from tokpipe.formats.job_record import flatten
from tokpipe.formats.tokenizer_spec import TokenizerSpec
from tokpipe.reader.code_cache import CodeCache
from tokpipe.reader.order import EpochOrder, Remaining
from tokpipe.reader.output import Output
from tokpipe.reader.shard_codes import Codes, ShardCodes
from tokpipe.reader.shares import MixRemaining, Share, quotas

Sample = dict[str, Any]
"""``clip_id``, and ``codes`` (t, h, w) as int64."""


def sample_of(clip_id: str, codes: Codes) -> Sample:
    """What a stream gives of a clip, unless told otherwise."""
    return {"clip_id": clip_id, "codes": codes.astype(np.int64)}


class ClipMix:
    """Clips of several outputs, in proportion to their weights: an iterable for a data loader.

    An epoch has a fixed number of clips of each output (``clips_per_epoch``). An output is gone
    through in passes: each has every clip once, in an order of its own, and the next begins where
    one ends, in the middle of an epoch or not; the next epoch goes on in it. So nothing comes
    a second time before everything of its output came once, and nothing is left out for good.

    Which clips an epoch has is a function of ``seed`` and epoch alone. Readers (the workers of all
    ranks) take each output's clips by turns, so that no two see the same and none is lost, and
    each has them evenly spread: after any number of clips, a reader has had of each output what is
    due, give or take a few. A reader's state is how many it has taken; the states of all readers
    together say what is left, for any number of them.

    On its own it is read by one reader per rank; ``tokpipe.reader.dataset.ClipDataset`` gives it to
    the workers of a PyTorch loader.

    Args:
        caches: the outputs' codes on local disk, which the workers of a node share.
        weights: one for each output, above 0; only their proportions count.
        by: what the weights weigh. ``"codes"`` allows for outputs whose clips are longer: of two
            equal weights, each gives half of the codes, as far as its clips are of one length.
        epoch_clips: clips of an epoch, in all; unless given, as many as the outputs have together.
        seed: decides the order of every pass.
        shuffle: False gives the clips of an output in the order of its manifest.
        window_shards: shards of an output whose clips are mixed with each other.
        rank: which of ``world_size`` processes this is.
        make: clip id and codes (t, h, w), read-only, to what the stream gives.

    Raises:
        ConfigError: codes of one output mean something else in another, an output would have no
            part in an epoch, or a rank is outside the world.
    """

    _format = "tokpipe.clip_mix.1"
    _kind = "mix of clips"

    def __init__(
        self,
        caches: Sequence[CodeCache],
        weights: Sequence[float],
        *,
        by: Literal["clips", "codes"] = "clips",
        epoch_clips: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        window_shards: int = 8,
        rank: int = 0,
        world_size: int = 1,
        make: Callable[[str, Codes], Any] = sample_of,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank={rank} is none of the {world_size} ranks, 0 and on")
        self.caches = tuple(caches)
        self.rank, self.world_size = rank, world_size
        self._make = make
        self._sizes = [cache.clip_counts for cache in caches]
        self._num_clips = [int(sizes.sum()) for sizes in self._sizes]
        if epoch_clips is None:
            epoch_clips = sum(self._num_clips)
        outputs = [cache.output for cache in caches]
        self.clips_per_epoch = _clips_per_epoch(outputs, weights, by, epoch_clips)
        """Clips that every epoch has of each output."""
        self._seed, self._shuffle, self._window_shards = seed, shuffle, window_shards
        self._settings: dict[str, Any] = {
            "seed": seed,
            "shuffle": shuffle,
            "window_shards": window_shards,
            "datasets": [output.record.dataset for output in outputs],
            "num_clips": self._num_clips,
            "clips_per_epoch": self.clips_per_epoch,
        }
        self.set_epoch(0)

    @property
    def tokenizer(self) -> TokenizerSpec:
        """What the codes mean."""
        return self.caches[0].tokenizer

    @property
    def epoch(self) -> int:
        """The epoch that is read, or will be."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch; what is left of another is forgotten."""
        self._epoch = epoch
        self._left = MixRemaining(
            tuple(Remaining(number) for number in self.clips_per_epoch), self._seed
        )

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
        found = [state for one in states for state in _states_in(one, self._format)]
        if not found:
            raise ConfigError(f"resume: there is no state of a {self._kind} in what was given")
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

    def _left_of(self, state: Mapping[str, Any]) -> MixRemaining:
        parts = zip(self.clips_per_epoch, state["start"], state["pending"], strict=True)
        return MixRemaining(
            tuple(Remaining(number, start, tuple(pending)) for number, start, pending in parts),
            self._seed,
        )

    def _check(self, state: Mapping[str, Any]) -> None:
        for key, value in self._settings.items():
            if state[key] != value:
                raise ConfigError(
                    f"the state has {key}={state[key]}, and this stream {value}: they do not read "
                    "the same clips in the same order. Open the outputs as far as they were then, "
                    "with the same settings"
                )

    def _order(self, source: int, number: int) -> EpochOrder:
        """Order of one pass over an output."""
        return EpochOrder(
            self._sizes[source],
            seed=(self._seed, source),
            epoch=number,
            shuffle=self._shuffle,
            window_shards=self._window_shards,
        )


class ClipStream(ClipMix):
    """All clips of an output, each once an epoch: an iterable dataset for a data loader.

    It is a mix of one output, whose epochs are its passes: all of ``ClipMix`` holds for it, and the
    order of an epoch is a function of ``seed`` and epoch alone.

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

    _format = "tokpipe.clip_stream.2"
    _kind = "clip stream"

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
        super().__init__(
            [cache],
            [1.0],
            seed=seed,
            shuffle=shuffle,
            window_shards=window_shards,
            rank=rank,
            world_size=world_size,
            make=make,
        )


class ClipIterator(Iterator[Any]):
    """What one reader takes of an epoch."""

    def __init__(self, stream: ClipMix, *, reader: int, num_readers: int) -> None:
        self._stream = stream
        self._reader, self._num_readers = reader, num_readers
        self._begin(0)

    def _begin(self, taken: int) -> None:
        self._left = self._stream._left
        self._epoch = self._stream.epoch
        self._share = Share(self._left, self._reader, self._num_readers)
        self._taken, self._counts = taken, self._share.counts(taken)
        self._orders: OrderedDict[tuple[int, int], EpochOrder] = OrderedDict()
        """Of the passes that are read, by source and number."""

    def __next__(self) -> Any:
        if self._taken >= len(self._share):
            raise StopIteration
        source = self._share.next_source(self._counts)
        position = self._share.position(source, self._counts[source])
        clip_id, codes = self._clip(source, position)
        self._taken += 1
        self._counts[source] += 1
        return self._stream._make(clip_id, codes)

    def _clip(self, source: int, position: int) -> tuple[str, Codes]:
        """Read a clip by its position among those that the epoch has of its output."""
        stream = self._stream
        ever = self._epoch * stream.clips_per_epoch[source] + position
        number, place = divmod(ever, stream._num_clips[source])
        key = source, number
        if key not in self._orders:
            self._orders[key] = stream._order(*key)
            if len(self._orders) > 2 * len(stream.caches):  # two where one ends and one begins
                self._orders.popitem(last=False)
        self._orders.move_to_end(key)
        shard, item = self._orders[key][place]
        return clip_of(stream.caches[source].shard(shard), item)

    def state_dict(self) -> dict[str, Any]:
        """How far this reader came, as plain values."""
        return {
            "format": self._stream._format,
            **self._stream._settings,
            "epoch": self._epoch,
            "start": [part.start for part in self._left.parts],
            "pending": [list(part.pending) for part in self._left.parts],
            "reader": self._reader,
            "num_readers": self._num_readers,
            "taken": self._taken,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a reader of the same number among as many stopped.

        Raises:
            ConfigError: it was another, or of another stream. ``resume`` of the stream takes the
                states of any number of readers.
        """
        self._stream._check(state)
        place = state["reader"], state["num_readers"]
        if place != (self._reader, self._num_readers):
            raise ConfigError(
                f"this is reader {self._reader} of {self._num_readers}, and the state is of reader "
                f"{place[0]} of {place[1]}: use resume with the states of all of them"
            )
        self._stream._epoch = state["epoch"]
        self._stream._left = self._stream._left_of(state)
        self._begin(state["taken"])


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


def _clips_per_epoch(
    outputs: Sequence[Output],
    weights: Sequence[float],
    by: Literal["clips", "codes"],
    epoch_clips: int,
) -> list[int]:
    """Clips that an epoch has of each output."""
    if not outputs or len(outputs) != len(weights):
        raise ConfigError(
            f"{len(weights)} weights for {len(outputs)} outputs: give one for each, and one output "
            "or more"
        )
    check_same_codes(outputs)
    if len(outputs) == 1:
        return [epoch_clips]  # which may be none, of an output that has none yet
    for output in outputs:
        if not output.num_clips:
            raise ConfigError(
                f"{output.store.uri} has no clips, and cannot have a part in a mix. Wait for its "
                "job, or leave it out"
            )
    if by == "codes":
        weights = [
            weight / (output.num_codes / output.num_clips)
            for weight, output in zip(weights, outputs, strict=True)
        ]
    try:
        found = quotas(weights, epoch_clips)
    except ValueError as error:
        raise ConfigError(f"a mix of {len(outputs)} outputs: {error}") from error
    for output, number in zip(outputs, found, strict=True):
        if not number:
            raise ConfigError(
                f"{output.store.uri} has so little weight that none of the {epoch_clips} clips of "
                "an epoch would be its own. Raise epoch_clips or its weight, or leave it out"
            )
    return found


def check_same_codes(outputs: Sequence[Output]) -> None:
    """Compare what the codes of outputs mean, which is their tokenizers' doing.

    Raises:
        ConfigError: those of two mean different things, with what they differ in.
    """
    first, *others = outputs
    wanted = _meaning(first)
    for other in others:
        found = _meaning(other)
        changed = [
            f"{key}: {wanted.get(key)!r} and {found.get(key)!r}"
            for key in sorted(wanted.keys() | found.keys())
            if wanted.get(key) != found.get(key)
        ]
        if changed:
            raise ConfigError(
                f"{first.store.uri} and {other.store.uri} come from different tokenizers "
                f"({'; '.join(changed)}). In a mix the same code would stand for other pixels in "
                "each, and a model could tell neither. Mix outputs of one tokenizer: tokenize one "
                "of them again"
            )


def _meaning(output: Output) -> dict[str, Any]:
    """What decides the meaning of a code. Sampling and chunking may differ: they choose pixels."""
    spec = output.tokenizer.model_dump(exclude={"name", "licence", "chunk_policy"})
    settings = {key: output.record.settings.get(key) for key in ("tokenizer", "weights")}
    return flatten({**spec, **settings})


def _states_in(value: Any, wanted: str) -> Iterator[Mapping[str, Any]]:
    """Find the states of readers in what a loader made of them."""
    if isinstance(value, Mapping):
        if value.get("format") == wanted:
            yield value
            return
        for inner in value.values():
            yield from _states_in(inner, wanted)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _states_in(inner, wanted)


def _worker() -> tuple[int, int]:
    """Which worker of a data loader this process is, of how many."""
    data = sys.modules.get("torch.utils.data")  # whoever is its worker has it loaded
    info = None if data is None else data.get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)
