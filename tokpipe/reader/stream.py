"""Clips for training: shuffled, shared among ranks and workers, resumable to the clip."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel

from tokpipe.errors import ConfigError
from tokpipe.formats.checks import explained
from tokpipe.formats.job_record import differences, flatten
from tokpipe.formats.tokenizer_spec import TokenizerSpec
from tokpipe.reader.code_cache import CodeCache
from tokpipe.reader.epochs import Epoch, Epochs
from tokpipe.reader.follow import Supply
from tokpipe.reader.order import EpochOrder, Even, MixRemaining, Remaining, Share, quotas
from tokpipe.reader.output import Output
from tokpipe.reader.ranks import Ranks
from tokpipe.reader.shard_codes import Codes, ShardCodes
from tokpipe.types import Count, Positive

Sample = dict[str, Any]  # ``clip_id``, and ``codes`` (t, h, w) as int64


def sample_of(clip_id: str, codes: Codes) -> Sample:
    """Return a clip as streams do by default."""
    return {"clip_id": clip_id, "codes": codes.astype(np.int64)}


class _State(BaseModel, strict=True):
    epoch: Count
    start: list[Count]
    pending: list[list[Count]]
    reader: Count
    num_readers: Positive
    taken: Count


class ClipMix:
    """Clips of several outputs in proportion to their weights, as an iterable for a data loader.

    Every epoch has the same number of clips of each output (``clips_per_epoch``). A reader goes
    through an output in passes. Each pass has every clip once, in its own order; the next pass
    begins where one ends, within an epoch or between two. So no clip repeats before all others of
    its output were read.

    The clips of an epoch depend only on ``seed`` and the epoch. Readers (the workers of all ranks)
    take turns at the clips of each output, so none is read twice or lost. Each reader gets them
    evenly spread: after any number of clips, its count of each output is within a few of what is
    due. A reader's state is the number of clips it has taken; the states of all readers determine
    what is left, for any number of readers.

    Each iteration gets the next epoch, whoever iterates: this object, or a loader with workers that
    are forked, spawned or persistent (``tokpipe.reader.dataset.ClipDataset``). It begins with its
    first clip, and ``set_epoch`` or ``resume`` do not change it any more.

    Args:
        caches: the outputs' codes on local disk, shared by the workers of a node.
        weights: one per output, above 0. Only their proportions matter.
        by: what to weigh. With ``"codes"``, two outputs of equal weight contribute the same number
            of codes, even if the clips of one are longer (exact if each has clips of one length).
        epoch_clips: clips per epoch; by default, as many as all outputs have together.
        seed: determines the order of every pass.
        shuffle: False returns the clips of an output in the order of its manifest.
        window_shards: number of shards of an output whose clips are mixed.
        rank: this process, 0 <= rank < ``world_size``. By default, both come from
            ``torch.distributed`` or from the variables RANK and WORLD_SIZE when an epoch begins.
        even: gives every reader the same number of clips, so that all ranks take the same number of
            steps. ``"drop"`` leaves out the last clips of an epoch, fewer than there are readers;
            with ``"repeat"``, that many are read twice. By default each clip is read exactly once,
            and some readers get one more than others.
        make: called with the clip id and codes (t, h, w), read-only; returns the item to yield.

    Raises:
        ConfigError: the outputs have different tokenizers, an output would have no clip in an
            epoch, or the rank is out of range.
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
        rank: int | None = None,
        world_size: int | None = None,
        even: Even | None = None,
        make: Callable[[str, Codes], Any] = sample_of,
    ) -> None:
        self.caches = tuple(caches)
        self.ranks = Ranks(rank, world_size)
        self.even = even
        self._make = make
        outputs = [cache.output for cache in caches]
        self._count()
        num_clips = sum(self._num_clips) if epoch_clips is None else epoch_clips
        self.clips_per_epoch = _clips_per_epoch(outputs, weights, by, num_clips)
        """Clips of each output in every epoch."""
        self._supply = Supply(outputs, window_shards if shuffle else 1, epoch_clips=epoch_clips)
        self._seed, self._shuffle, self._window_shards = seed, shuffle, window_shards
        self._settings: dict[str, Any] = {
            "seed": seed,
            "shuffle": shuffle,
            "window_shards": window_shards,
            "datasets": [output.record.dataset for output in outputs],
            "num_clips": self._num_clips,
            "clips_per_epoch": self.clips_per_epoch,
            "follow": outputs[0].record.writer if self._supply.follows else None,
        }
        self._epochs = Epochs()

    def _count(self) -> None:
        self._sizes = [cache.output.shards.clip_counts for cache in self.caches]
        self._num_clips = [int(sizes.sum()) for sizes in self._sizes]

    def _refresh(self) -> None:
        """Take in what a followed job has committed. States know counts once it has finished."""
        if self._supply.follows:
            self._supply.output.refresh()
            self._count()
            self.clips_per_epoch = self._num_clips
            counts = self._num_clips if self._supply.is_whole else None
            self._settings |= {"num_clips": counts, "clips_per_epoch": counts}

    @property
    def tokenizer(self) -> TokenizerSpec:
        return self.caches[0].tokenizer

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration gets."""
        return self._epochs.next[0]

    def set_epoch(self, epoch: int) -> None:
        """Give the next iteration this epoch: what is left of it after ``resume``, or all of it."""
        if epoch != self.epoch:
            self._epochs.set((epoch, None))

    def __len__(self) -> int:
        """Number of clips that the next iteration yields on this rank, without workers."""
        return sum(self.num_items(1))

    def num_items(self, num_workers: int) -> list[int]:
        """Return how many clips each worker of this rank yields in the next iteration."""
        rank, world_size = self.ranks.rank()
        left = self._remaining(*self._epochs.next)
        if not self._supply.is_whole:
            raise TypeError("the number of clips is unknown before the job has finished")
        readers = range(rank * num_workers, (rank + 1) * num_workers)
        return [len(Share(left, reader, world_size * num_workers, self.even)) for reader in readers]

    def __iter__(self) -> "ClipIterator":
        reader, num_readers = self.ranks.reader()
        return ClipIterator(self, reader=reader, num_readers=num_readers)

    def resume(self, states: Iterable[Any]) -> None:
        """Continue where the readers of another run stopped, whatever their number.

        The next iteration is the rest of their epoch, or the next epoch if they had finished it.

        Args:
            states: the states of all its readers: ``ClipIterator.state_dict()``, or objects that
                contain them, such as the ``state_dict`` of each rank's ``StatefulDataLoader``.

        Raises:
            ConfigError: a state is missing, or they have different outputs, orders or epochs.
        """
        found = [state for one in states for state in _states_in(one, self._format)]
        if not found:
            raise ConfigError(f"resume: the argument contains no state of a {self._kind}")
        first = found[0]
        for state in found:
            self._check(state)
            for key in ("epoch", "start", "pending", "num_readers"):
                if state[key] != first[key]:
                    raise ConfigError(
                        f"resume: one state has {key}={first[key]}, another {key}={state[key]}, so "
                        "they were not saved at the same moment of one run. Clips would be lost or "
                        "repeated"
                    )
        taken = {state["reader"]: state["taken"] for state in found}
        num_readers = first["num_readers"]
        if len(taken) != num_readers or sorted(taken) != list(range(len(taken))):
            raise ConfigError(
                f"resume: got the states of {len(taken)} of {num_readers} readers. What the others "
                "have read is unknown: pass the states of all ranks"
            )
        left, counts = (
            self._remaining(first["epoch"], first),
            [taken[k] for k in range(num_readers)],
        )
        try:
            rest = left.after(counts)
        except ValueError as error:
            raise ConfigError(f"resume: {error}") from error
        ends = [len(Share(left, reader, num_readers, self.even)) for reader in range(num_readers)]
        is_done = all(count >= end for count, end in zip(counts, ends, strict=True))
        is_done &= self._supply.is_whole
        self._epochs.set((first["epoch"] + is_done, None if is_done else rest.state()))

    def _remaining(self, epoch: int, state: Mapping[str, Any] | None) -> MixRemaining:
        self._refresh()
        is_whole = self._supply.is_whole
        numbers = self.clips_per_epoch if is_whole else [self._supply.num_served(epoch)]
        if state is None:
            return MixRemaining(tuple(map(Remaining, numbers)), self._seed)
        parts = zip(numbers, state["start"], state["pending"], strict=True)
        left = (Remaining(number, start, tuple(pending)) for number, start, pending in parts)
        return MixRemaining(tuple(left), self._seed)

    def _check(self, state: Mapping[str, Any]) -> None:
        self._refresh()  # the state may be from a later moment
        for key, value in self._settings.items():
            if key in ("num_clips", "clips_per_epoch") and state.get(key, 0) is None:
                continue  # saved before the job had finished
            if state.get(key) != value:
                raise ConfigError(
                    f"the state has {key}={state.get(key)!s:.99}, but this stream has {key}="
                    f"{value}, so they read different clips or another order. Open the outputs as "
                    "of when the state was saved, and use the same settings"
                )
        try:
            _State.model_validate(dict(state))
            if not state["taken"] <= len(self._remaining(state["epoch"], state)):
                raise ValueError(f"it has taken {state['taken']} clips, more than there are")
        except ValueError as error:
            raise ConfigError(f"the state is damaged: {explained(error)}") from error

    def _order(self, source: int, number: int) -> EpochOrder:
        as_committed = self._supply.follows and number == 0 and self._shuffle
        return EpochOrder(
            self._sizes[source],
            seed=(self._seed, source),
            epoch=number,
            shuffle="windows" if as_committed else self._shuffle,
            window_shards=self._window_shards,
        )


class ClipStream(ClipMix):
    """All clips of one output, each once per epoch, as an iterable for a data loader.

    A mix of one output: see ``ClipMix`` for readers, states and the other arguments.

    Args:
        cache: the codes of an output on local disk. It may ``follow`` a job that still runs.
    """

    _format = "tokpipe.clip_stream.2"
    _kind = "clip stream"

    def __init__(self, cache: CodeCache, **settings: Any) -> None:
        super().__init__([cache], [1.0], **settings)


class ClipIterator(Iterator[Any]):
    """The clips that one reader takes from an epoch."""

    def __init__(self, stream: ClipMix, *, reader: int, num_readers: int) -> None:
        self._stream = stream
        self._reader, self._num_readers = reader, num_readers
        self._share: Share | None = None  # Until it begins with the first clip or state

    def _begin(self, wanted: Epoch | None = None, taken: int = 0) -> Share:
        self._epoch, left = self._stream._epochs.claim(wanted)
        share = self._look(left)
        is_whole = left is None and self._is_whole and self._left
        if is_whole and self._stream.even == "drop" and not share:
            raise ConfigError(
                f"even='drop': an epoch of {len(self._left)} clips leaves none for "
                f"{self._num_readers} readers. Use fewer workers, or even='repeat'"
            )
        self._taken, self._counts = taken, share.counts(taken)
        return share

    def _look(self, left: Mapping[str, Any] | None) -> Share:
        """Take in what there is of the epoch by now."""
        stream = self._stream
        self._left = stream._remaining(self._epoch, left)
        self._is_whole = stream._supply.is_whole
        even: Even | None = stream.even if self._is_whole or not stream.even else "drop"
        self._share = Share(self._left, self._reader, self._num_readers, even)
        self._order = lru_cache(2 * len(stream.caches))(stream._order)  # two passes, of each output
        return self._share

    def __next__(self) -> Any:
        share = self._begin() if self._share is None else self._share
        while self._taken >= len(share):
            if self._is_whole:
                raise StopIteration
            self._stream._supply.wait(self._epoch, self._left.parts[0].num_items)
            share = self._look(self._left.state())
        stream, (source, position) = self._stream, share.item(self._counts)
        ever = self._epoch * stream.clips_per_epoch[source] + position
        number, place = divmod(ever, stream._num_clips[source])
        shard, item = self._order(source, number)[place]
        clip_id, codes = clip_of(stream.caches[source].shard(shard), item)
        self._taken += 1
        self._counts[source] += 1
        return stream._make(clip_id, codes)

    def state_dict(self) -> dict[str, Any]:
        """Return this reader's position, as plain values."""
        if self._share is None:
            self._begin()
        return {
            "format": self._stream._format,
            **self._stream._settings,
            "epoch": self._epoch,
            **self._left.state(),
            "reader": self._reader,
            "num_readers": self._num_readers,
            "taken": self._taken,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of the same reader, with the same number of readers.

        Raises:
            ConfigError: the state is another reader's or another stream's. For another number of
                readers, use ``resume`` of the stream.
        """
        self._stream._check(state)
        place = state["reader"], state["num_readers"]
        if place != (self._reader, self._num_readers):
            raise ConfigError(
                f"this is reader {self._reader} of {self._num_readers}, but the state is of reader "
                f"{place[0]} of {place[1]}: call resume with the states of all readers"
            )
        left = {key: state[key] for key in ("start", "pending")}
        self._begin((state["epoch"], left), state["taken"])


def clip_of(shard: ShardCodes, number: int) -> tuple[str, Codes]:
    """Return the id and codes (t, h, w) of a shard's clip, its chunks concatenated in time."""
    first, last = shard.clip_starts[number : number + 2].tolist()
    clip_id: str = shard.rows.column("clip_id")[first].as_py()
    blocks: list[Any] = [shard[row] for row in range(first, last)]
    return clip_id, blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def _clips_per_epoch(
    outputs: Sequence[Output],
    weights: Sequence[float],
    by: Literal["clips", "codes"],
    epoch_clips: int,
) -> list[int]:
    if not outputs or len(outputs) != len(weights):
        raise ConfigError(
            f"{len(weights)} weights for {len(outputs)} outputs: pass one weight per output, and "
            "at least one output"
        )
    _check_same_codes(outputs)
    if len(outputs) == 1:
        return [epoch_clips]  # 0 if the output has no clips yet
    for output in outputs:
        if not output.num_clips:
            raise ConfigError(
                f"{output.store.uri} has no clips, so it cannot be mixed. Wait for its job, or "
                "leave it out"
            )
    if by == "codes":
        lengths = [output.num_codes / output.num_clips for output in outputs]
        weights = [weight / length for weight, length in zip(weights, lengths, strict=True)]
    try:
        found = quotas(weights, epoch_clips)
    except ValueError as error:
        raise ConfigError(f"a mix of {len(outputs)} outputs: {error}") from error
    for output, number in zip(outputs, found, strict=True):
        if not number:
            raise ConfigError(
                f"{output.store.uri} has so little weight that an epoch of {epoch_clips} clips "
                "would have none of it. Raise epoch_clips or its weight, or leave it out"
            )
    return found


def _check_same_codes(outputs: Sequence[Output]) -> None:
    first, *others = outputs
    for other in others:
        if changed := differences(_meaning(first), _meaning(other), "and"):
            raise ConfigError(
                f"{first.store.uri} and {other.store.uri} come from different tokenizers "
                f"({'; '.join(changed)}). In a mix, the same code would mean different pixels, and "
                "a model could not tell which. Mix outputs of one tokenizer: tokenize one of these "
                "again"
            )


def _meaning(output: Output) -> dict[str, Any]:
    """Return the settings that give codes their meaning. Sampling and chunking are not among them:
    they choose pixels."""
    spec = output.tokenizer.model_dump(exclude={"name", "licence", "chunk_policy"})
    settings = {key: output.record.settings.get(key) for key in ("tokenizer", "weights")}
    flat = flatten({**spec, **settings})
    return {key: value for key, value in flat.items() if value is not None}


def _states_in(value: Any, wanted: str) -> Iterator[Mapping[str, Any]]:
    """Yield the readers' states, however a loader has nested them."""
    if isinstance(value, Mapping):
        if value.get("format") == wanted:
            yield value
            return
        value = list(value.values())
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _states_in(inner, wanted)
