"""Clips for training: shuffled, shared among ranks and workers, resumable to the clip."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import islice
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel

from tokpipe.errors import ConfigError
from tokpipe.formats.checks import explained
from tokpipe.formats.shard import TokenizerSpec
from tokpipe.reader.code_cache import CodeCache
from tokpipe.reader.epochs import Epoch, Epochs
from tokpipe.reader.follow import Supply
from tokpipe.reader.order import EpochOrder, Even, Remaining, Share
from tokpipe.reader.ranks import Ranks
from tokpipe.reader.source import Ahead, Source, clips_per_epoch, fitted_window
from tokpipe.types import Codes, Count, Positive

_COUNTS = ("num_clips", "clips_per_epoch", "num_shards")
Sample = dict[str, Any]  # ``clip_id``, ``codes`` (t, h, w) as int64, and columns


def sample_of(clip_id: str, codes: Codes, **columns: Any) -> Sample:
    """Return a clip as streams do by default."""
    return {"clip_id": clip_id, "codes": codes.astype(np.int64), **columns}


class _State(BaseModel, strict=True):
    epoch: Count
    start: list[Count]
    pending: list[list[Count]]
    reader: Count
    num_readers: Positive
    taken: Count


class ClipMix:
    """Clips of several outputs in proportion to their weights, as an iterable for a data loader.

    Every epoch has ``clips_per_epoch`` clips of each output. An output is read in passes. Each has
    every clip once, in its own order, and the next begins where one ends, within an epoch or
    between two. So no clip repeats before all others of its output were read.

    The clips of an epoch depend only on ``seed`` and the epoch. Readers (the workers of all ranks)
    take turns at the clips of each output, so none is read twice or lost. Each reader gets them
    evenly spread: after any number of clips, its count of each output is within a few of what is
    due. A reader's state is the number of clips it has taken; the states of all readers determine
    what is left, for any number of readers.

    Each iteration gets the next epoch, whoever iterates: this object, or a loader with workers that
    are forked, spawned or persistent (``tokpipe.reader.dataset.ClipDataset``). It begins with its
    first clip, and ``set_epoch`` or ``resume`` do not change it any more.

    With ``locality="node"``, each node reads its own part of the shards, another one in each epoch,
    so ``num_nodes`` nodes fetch each shard about once together, not once each. The ranks of a node
    share its part. A run can resume with other numbers of ranks and workers, but not of nodes.

    Args:
        caches: the outputs' codes on local disk, shared by the workers of a node.
        weights: of the clips of each output, above 0. Only their proportions matter.
        epoch_clips: clips per epoch; by default, as many as all outputs have together.
        seed: determines the order of every pass.
        shuffle: False returns the clips of an output in the order of its manifest.
        window_shards: number of shards of an output whose clips are mixed. It is lowered, with a
            warning, if ``max_bytes`` of a cache does not hold two windows.
        rank: this process, 0 <= rank < ``world_size``. By default, both come from
            ``torch.distributed`` or from the variables RANK and WORLD_SIZE when an epoch begins.
        even: gives every reader the same number of clips, so that all ranks take the same number of
            steps. ``"drop"`` leaves out the last clips of an epoch, fewer than there are readers;
            with ``"repeat"``, that many are read twice. By default each clip is read exactly once,
            and some readers get one more than others. With ``locality``, the parts of nodes are
            made equal, too, which may leave out or repeat one more clip per node and output.
        locality: by default, the readers of all nodes share every shard.
        num_nodes: by default, ``world_size`` divided by the variable LOCAL_WORLD_SIZE.
        columns: columns of the side tables (captions, scores, ``fps``) that items have too.
        filter: keeps the clips for which this ``pyarrow.compute.Expression`` over columns of the
            side tables is true. Null is not true.
        make: called with the clip id, codes (t, h, w), read-only, and the columns as keyword
            arguments; returns the item to yield.

    Raises:
        ConfigError: the outputs have different tokenizers, an output would have no clip in an
            epoch, a column is unknown, or the rank is out of range.
    """

    _format = "tokpipe.clip_mix.1"
    _kind = "mix of clips"

    def __init__(
        self,
        caches: Sequence[CodeCache],
        weights: Sequence[float],
        *,
        epoch_clips: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        window_shards: int = 8,
        rank: int | None = None,
        world_size: int | None = None,
        even: Even | None = None,
        locality: Literal["node"] | None = None,
        num_nodes: int | None = None,
        columns: Sequence[str] = (),
        filter: Any = None,
        make: Callable[..., Any] = sample_of,
    ) -> None:
        self.caches = tuple(caches)
        self.ranks = Ranks(rank, world_size, num_nodes)
        self.even, self.locality = even, locality
        self._make = make
        self._chosen = columns, filter
        self.sources = [Source(cache, *self._chosen) for cache in caches]
        outputs = [cache.output for cache in caches]
        follow: Any = {"epoch_clips": epoch_clips, "locality": locality, "filter": filter}
        self._supply = Supply(outputs, window_shards if shuffle else 1, **follow)
        self._wanted = weights, epoch_clips, window_shards
        self._seed, self._shuffle, self._window_shards = seed, shuffle, window_shards
        self._epochs = Epochs()
        self._measure()

    def _measure(self) -> None:
        """Divide an epoch among the clips that there are to read."""
        weights, epoch_clips, window_shards = self._wanted
        self._num_clips = [source.num_clips for source in self.sources]
        outputs = [cache.output for cache in self.caches]
        number = sum(self._num_clips) if epoch_clips is None else epoch_clips
        self.clips_per_epoch = clips_per_epoch(outputs, weights, number)
        """Clips of each output in every epoch."""
        if self._shuffle and not self._supply.follows:
            self._window_shards = fitted_window(self.sources, window_shards)

    def _go_back(self, num_shards: Sequence[int]) -> None:
        """Read only the first shards of each output: what it had when a state was saved."""
        rest = iter(num_shards)
        counts = [[*islice(rest, len(cache.output.joined))] for cache in self.caches]
        if all(map(any, counts)):
            before = map(CodeCache.earlier, self.caches, counts)
            self.sources[:] = (Source(cache, *self._chosen) for cache in before)
            self._supply.is_limited = True
            self._measure()

    def _refresh(self) -> None:
        """Take in what a followed job has committed."""
        if self._supply.follows and not self._supply.is_limited:
            self._supply.output.refresh()
            self.clips_per_epoch = self._num_clips = [self.sources[0].num_clips]

    @property
    def tokenizer(self) -> TokenizerSpec:
        return self.caches[0].tokenizer

    @property
    def num_nodes(self) -> int:
        """Number of nodes that divide an epoch; 1 without ``locality``."""
        return 1 if self.locality is None else self.ranks.num_nodes()

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
        return list(map(len, self.shares(num_workers)))

    def shares(self, num_workers: int) -> list[Share]:
        """Return what each worker of this rank reads in the next iteration."""
        rank, world_size = self.ranks.rank()
        self._refresh()
        if not self._supply.is_whole:
            raise TypeError("the number of clips is unknown before the job has finished")
        (epoch, left), num_readers = self._epochs.next, world_size * num_workers
        own = range(rank * num_workers, (rank + 1) * num_workers)
        return [self._share(epoch, left, reader, num_readers) for reader in own]

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
        of_readers, of_nodes = dict[int, Any](), dict[int, Any]()
        for state in found:
            self._check(state)
            of_readers[state["reader"]] = state
            mate = of_nodes.setdefault(self._node_of(state), state)
            for other, keys in ((first, ("epoch", "num_readers")), (mate, ("start", "pending"))):
                if key := next((key for key in keys if state[key] != other[key]), None):
                    got = f"one state has {key}={other[key]}, another {key}={state[key]}"
                    why = "so they were not saved at the same moment of one run"
                    raise ConfigError(f"resume: {got}, {why}")
        num_readers = first["num_readers"]
        if sorted(of_readers) != list(range(num_readers)):
            got = f"resume: got the states of {len(of_readers)} of {num_readers} readers"
            raise ConfigError(f"{got}: pass the states of all ranks")
        rests, is_done = {}, self._supply.is_whole
        per_node = num_readers // self.num_nodes
        for node, mate in of_nodes.items():
            own = range(node * per_node, (node + 1) * per_node)
            share = self._share(mate["epoch"], {str(node): mate}, own[0], num_readers)
            taken = [of_readers[reader]["taken"] for reader in own]
            rests[str(node)] = share.left.after(taken).state()
            shares = (Share(share.left, k, per_node, share.even) for k in range(per_node))
            is_done &= all(one >= len(each) for one, each in zip(taken, shares, strict=True))
        self._epochs.set((first["epoch"] + is_done, None if is_done else rests))

    def _node_of(self, state: Mapping[str, Any]) -> int:
        """Return the node of the reader that saved a state."""
        return int(state["reader"] * self.num_nodes // state["num_readers"])

    def _share(
        self, epoch: int, left: Mapping[str, Any] | None, reader: int, num_readers: int
    ) -> Share:
        """Return what a reader has to read of what its node has: what is ``left`` of the epoch for
        this node, or else its part."""
        num_nodes, is_whole = self.num_nodes, self._supply.is_whole
        node, place = divmod(reader, num_readers // num_nodes)
        clips = self.clips_per_epoch if is_whole else [self._supply.num_served(epoch)]
        numbers = np.array(clips, np.int64)
        starts, ends = (one * numbers // num_nodes for one in (node, node + 1))
        if self.even:
            ends = starts + (numbers + (num_nodes - 1) * (self.even == "repeat")) // num_nodes
        part = {"start": starts.tolist(), "pending": [[]] * len(starts)}
        if left is not None:
            part = left[str(node)]
        remaining = Remaining(ends.tolist(), part["start"], part["pending"], self._seed)
        even: Even | None = self.even if is_whole or not self.even else "drop"
        return Share(remaining, place, num_readers // num_nodes, even)

    def _check(self, state: Mapping[str, Any]) -> None:
        self._refresh()  # the state may be from a later moment
        shards: Any = state.get("num_shards")
        known = _num_shards(self.caches)
        with contextlib.suppress(TypeError, ValueError):  # which is not a state, as is said below
            is_known = all(0 <= a <= b for a, b in zip(shards, known, strict=True))
            if is_known and shards != _num_shards(source.cache for source in self.sources):
                self._go_back(shards)
        for key, value in self._settings().items():
            if key in _COUNTS and state.get(key, 0) is None:
                continue  # saved before the job had finished
            if key == "num_shards" and key not in state:
                continue  # saved by an earlier version
            if state.get(key) != value:
                do = "use the outputs and settings with which the state was saved"
                if key == "removals":
                    do = "clips were removed since. Open a new stream, and set_epoch to a later one"
                has = f"the state has {key}={state.get(key)!s:.99}"
                raise ConfigError(f"{has}, but this stream has {key}={value}: {do}")
        try:
            found = _State.model_validate(dict(state))
            if found.num_readers % self.num_nodes:
                raise ValueError(f"not all of {self.num_nodes} nodes have as many readers")
            left = {str(self._node_of(state)): state}
            share = self._share(found.epoch, left, found.reader, found.num_readers)
            share.counts(found.taken)
        except ValueError as error:
            raise ConfigError(f"the state is damaged: {explained(error)}") from error

    def _settings(self) -> dict[str, Any]:
        """Return what decides the order, of which a state must have the same."""
        joined = [one for cache in self.caches for one in cache.output.joined]
        num_shards = _num_shards(source.cache for source in self.sources)
        counts = self._num_clips, self.clips_per_epoch, num_shards
        filters = [source.filter for source in self.sources]
        writers = [one.record.writer for one in joined]
        removals = [one.state.num_removals for one in joined]
        return {
            **({"removals": removals} if any(removals) else {}),
            "seed": self._seed,
            "shuffle": self._shuffle,
            "window_shards": self._window_shards,
            "datasets": [one.record.dataset for one in joined],
            "joined": writers if len(joined) > len(self.caches) else None,
            "filter": filters if any(filters) else None,
            "follow": self._supply.output.record.writer if self._supply.follows else None,
            **dict(zip(_COUNTS, counts if self._supply.is_whole else [None] * 3, strict=True)),
            "num_nodes": self.num_nodes if self.locality else None,
        }

    def _order(self, source: int, number: int) -> EpochOrder:
        as_committed = self._supply.follows and number == 0 and self._shuffle
        return EpochOrder(
            self.sources[source].sizes,
            seed=(self._seed, source),
            epoch=number,
            shuffle="windows" if as_committed else self._shuffle,
            window_shards=self._window_shards,
            num_parts=self.num_nodes,
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
    """The clips that one reader takes from an epoch. It begins with the first clip or state."""

    def __init__(self, stream: ClipMix, *, reader: int, num_readers: int) -> None:
        self._stream = stream
        self._reader, self._num_readers = reader, num_readers

    @cached_property
    def share(self) -> Share:
        """What this reader takes, as far as is known."""
        return self._begin()

    def _begin(self, wanted: Epoch | None = None, taken: int = 0) -> Share:
        self._epoch, left = self._stream._epochs.claim(wanted)
        share = self._look(left)
        is_whole = left is None and self._is_whole and share.left
        if is_whole and self._stream.even == "drop" and not share:
            none = f"{len(share.left)} clips leaves none for {self._num_readers} readers"
            do = "Use fewer workers, or even='repeat'"
            raise ConfigError(f"even='drop': an epoch of {none}. {do}")
        self._taken, self._counts = taken, share.counts(taken)
        self._ahead = Ahead(self._stream.sources, self._reader)
        return share

    def _look(self, left: Mapping[str, Any] | None) -> Share:
        """Take in what there is of the epoch by now."""
        stream = self._stream
        stream._refresh()
        self._is_whole = stream._supply.is_whole
        self.share = stream._share(self._epoch, left, self._reader, self._num_readers)
        self.num_clips = len(self.share)
        """Number of clips that this reader takes from its epoch, as far as is known."""
        self._order = lru_cache(2 * len(stream.caches))(stream._order)  # two passes of each output
        return self.share

    def __next__(self) -> Any:
        share, stream = self.share, self._stream
        while self._taken >= len(share):
            if self._is_whole:
                raise StopIteration
            stream._supply.wait(self._epoch, share.left.ends[0])
            share = self._look({"0": share.left.state()})
        source, position = share.item(self._counts)
        ever = self._epoch * stream.clips_per_epoch[source] + position
        number, place = divmod(ever, stream._num_clips[source])
        order = self._order(source, number)
        end = place + share.left.ends[source] - position  # of what this node reads
        self._ahead.make(source, order, order.window_of(place), end)
        clip_id, codes, columns = stream.sources[source].clip(*order[place])
        self._taken += 1
        self._counts[source] += 1
        return stream._make(clip_id, codes, **columns)

    def rewind(self, taken: int = 0) -> None:
        """Go back to where ``taken`` clips were read; without any clips, to those of another."""
        left = self.share.left
        if left and not self.share:
            self.share = Share(left, self._reader % len(left), self.share.num_readers)
        self._taken, self._counts = taken, self.share.counts(taken)

    def state_dict(self) -> dict[str, Any]:
        """Return this reader's position, as plain values."""
        left = self.share.left.state()
        return {
            "format": self._stream._format,
            **self._stream._settings(),
            "epoch": self._epoch,
            **left,
            "reader": self._reader,
            "num_readers": self._num_readers,
            "taken": self._taken,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of the same reader, with the same number of readers.

        With ``even``, that of the same worker of another rank on its node is as good, if they
        were at the same step: many trainers save the states of one rank only.

        Raises:
            ConfigError: the state is another reader's or another stream's. For another number of
                readers, use ``resume`` of the stream.
        """
        stream = self._stream
        stream._check(state)
        place, own = (state["reader"], state["num_readers"]), (self._reader, self._num_readers)
        num_workers = self._num_readers // stream.ranks.rank()[1]
        is_as_good = (
            stream.even is not None
            and place[1] == own[1]
            and (place[0] - own[0]) % num_workers == 0
            and stream._node_of(state) == stream._node_of({**state, "reader": self._reader})
        )
        if place != own and not is_as_good:
            saved = f"the state is of reader {place[0]} of {place[1]}"
            do = "call resume with the states of all readers"
            raise ConfigError(f"this is reader {own[0]} of {own[1]}, but {saved}: {do}")
        left = {str(stream._node_of(state)): {key: state[key] for key in ("start", "pending")}}
        self._begin((state["epoch"], left), state["taken"])


def _num_shards(caches: Iterable[CodeCache]) -> list[int]:
    return [number for cache in caches for number in cache.output.shards.of_outputs]


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
