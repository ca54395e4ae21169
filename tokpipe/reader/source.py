"""Outputs as the sources of a stream: clips with columns, what a filter keeps, and proportions."""

import contextlib
import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokpipe.errors import ConfigError, TokpipeError
from tokpipe.formats.job_record import differences, flatten
from tokpipe.reader.code_cache import CodeCache
from tokpipe.reader.columns import KeptClips, check_columns
from tokpipe.reader.order import EpochOrder, quotas
from tokpipe.reader.output import Output
from tokpipe.types import Codes

_log = logging.getLogger(__name__)


class Source:
    """The clips of an output, by shard and number among the shard's clips that ``keep`` keeps.

    ConfigError for an unknown column, or a filter that is no condition or keeps no clip.
    """

    def __init__(self, cache: CodeCache, columns: Sequence[str], keep: Any) -> None:
        self.cache = cache
        self.columns = tuple(sorted(set(columns)))
        check_columns(cache.output, self.columns)
        self._kept = None if keep is None else KeptClips(cache.output, cache.folder, keep)
        self.filter = self._kept and [str(keep), self._kept.digest]
        """What a state says of the filter: its text, and a hash of which clips it keeps."""

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(shards,) number of clips of each."""
        kept = self._kept
        return self.cache.output.shards.clip_counts if kept is None else kept.sizes

    @property
    def num_clips(self) -> int:
        return int(self.sizes.sum())

    def num_tokens(self, num_clips: int) -> int:
        """Return how many codes, and a token before each, so many clips have by the mean."""
        shards = self.cache.output.shards
        every = int(shards.clip_counts.sum())
        return num_clips * (int(shards.field("num_codes").sum()) + every) // max(1, every)

    def clip(self, shard: int, number: int) -> tuple[str, Codes, dict[str, Any]]:
        """Return a clip's id, codes and columns."""
        if self._kept is not None:
            number = self._kept.clip(shard, number)
        clip_id, codes = self.cache.shard(shard).clip(number)
        if not self.columns:
            return clip_id, codes, {}
        return clip_id, codes, self.cache.columns(shard, self.columns).of(number, clip_id)

    def prepare(self, shard: int) -> None:
        """Make the files of a shard, if nothing is wrong with it."""
        with contextlib.suppress(TokpipeError):
            self.cache.shard(shard)
            if self.columns:
                self.cache.columns(shard, self.columns)


def clips_per_epoch(
    outputs: Sequence[Output], weights: Sequence[float], epoch_clips: int
) -> list[int]:
    """Divide an epoch among outputs by weight; ConfigError if they do not mix."""
    if not outputs or len(outputs) != len(weights):
        raise ConfigError(f"{len(weights)} weights for {len(outputs)} outputs: pass one for each")
    first, *others = outputs
    for other in others:
        if changed := differences(_meaning(first), _meaning(other), "and"):
            differ = f"{first.uri} and {other.uri} come from different tokenizers"
            why = "In a mix, the same code would mean different pixels"
            raise ConfigError(f"{differ} ({'; '.join(changed)}). {why}")
    if not others:
        return [epoch_clips]  # 0 if the output has no clips yet
    for output in outputs:
        if not output.num_clips:
            raise ConfigError(f"{output.uri} has no clips, so it cannot be mixed")
    try:
        found = quotas(weights, epoch_clips)
    except ValueError as error:
        raise ConfigError(f"a mix of {len(outputs)} outputs: {error}") from error
    for output, number in zip(outputs, found, strict=True):
        if not number:
            one = f"{output.uri} has so little weight that an epoch of {epoch_clips} clips"
            raise ConfigError(f"{one} would have none of it: raise either, or leave it out")
    return found


def _meaning(output: Output) -> dict[str, Any]:
    """Return the settings that give codes their meaning; sampling and chunking choose pixels."""
    spec = output.tokenizer.model_dump(exclude={"name", "licence", "chunk_policy"})
    settings = {key: output.record.settings.get(key) for key in ("tokenizer", "weights")}
    flat = flatten({**spec, **settings})
    return {key: value for key, value in flat.items() if value is not None}


def fitted_window(sources: Sequence[Source], window_shards: int) -> int:
    """Return how many shards to mix so that the caches hold two windows: the current and the next.

    ConfigError if a cache does not even hold windows of one shard.
    """
    folders: dict[str, list[Source]] = defaultdict(list)
    for source in sources:
        folders[str(source.cache.folder.path.resolve())].append(source)
    fitted = window_shards
    for folder, users in folders.items():
        limit = min(user.cache.folder.max_bytes or math.inf for user in users)
        every = [(user.cache.sizes(user.columns), user.sizes) for user in users]
        sizes = [np.sort(size[clips > 0])[::-1] for size, clips in every]
        while (needed := sum(int(each[: 2 * fitted].sum()) for each in sizes)) > limit:
            fitted -= 1
            if not fitted:
                found = f"does not hold two shards of each output ({needed:,} bytes)"
                raise ConfigError(f"{folder}: max_bytes={limit:,} {found}: raise it")
    if fitted < window_shards:
        why = "max_bytes of the code cache does not hold two windows: raise it to mix more clips"
        _log.warning("window_shards=%d is lowered to %d, because %s", window_shards, fitted, why)
    return fitted


class Ahead:
    """Makes shards that a reader needs soon in a thread, one at a time, each when a clip is taken.

    So a process that ends waits for one shard at most. An error is not raised here: the clip that
    needs the shard tries again, and raises it.
    """

    def __init__(self, sources: Sequence[Source], reader: int) -> None:
        self._sources, self._reader = sources, reader
        self._pool = ThreadPoolExecutor(1, "shards-ahead")
        self._running: Future[None] | None = None
        self._windows: dict[int, tuple[EpochOrder, int]] = {}  # Of each source, what it reads now
        self._waiting: dict[int, list[int]] = {}

    def make(self, source: int, order: EpochOrder, window: int, end: int) -> None:
        """Begin with the next shard of this window or the next one, unless one is being made."""
        if self._windows.get(source) != (order, window):
            self._windows[source] = order, window
            shards = order.shards_of(window, end)
            first = self._reader % len(shards)  # readers of a node begin with different ones
            self._waiting[source] = shards[first:] + shards[:first]
        if self._running is None or self._running.done():
            for number, shards in self._waiting.items():
                if shards:
                    own = self._sources[number]
                    self._running = self._pool.submit(own.prepare, shards.pop(0))
                    break
