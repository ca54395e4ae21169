"""When an output came to be, and what its actors did meanwhile; from its manifest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone

import numpy as np
from numpy.typing import NDArray

from tokpipe.formats.manifest import ActorUse, ManifestEntry, iter_entries
from tokpipe.reader.shard_list import ShardList
from tokpipe.storage.store import Store
from tokpipe.types import Rejected

MAX_ENTRIES = 512
"""Entries that are read, spread evenly; the times of those between lie between theirs. What was
made is exact all the same: it stands in the list of shards."""
MAX_SPANS = 60
EXAMPLES = 3
"""Rejected clips that are shown for each reason."""


@dataclass(frozen=True, slots=True)
class Span:
    """What happened in one of many stretches of time of equal length."""

    start: datetime
    seconds: float
    num_clips: int
    num_codes: int
    actors: ActorUse


@dataclass(frozen=True, slots=True)
class History:
    """An output's life so far."""

    num_entries: int
    num_read: int
    spans: tuple[Span, ...]
    """One after the other; none if nothing was committed yet."""
    actors: ActorUse
    """Of all entries that were read."""
    starts: tuple[datetime, ...]
    """When drivers began, as far as their entries were read."""
    examples: dict[str, tuple[Rejected, ...]] = field(default_factory=dict)
    """A few rejected clips of each reason."""

    @property
    def begin(self) -> datetime | None:
        return self.spans[0].start if self.spans else None

    @property
    def elapsed_s(self) -> float:
        """From the first entry to the last, pauses between runs included."""
        return sum(span.seconds for span in self.spans)


def read_history(store: Store, num_entries: int, shards: ShardList) -> History:
    """Read some entries of the manifest and lay the shards along their times.

    Args:
        num_entries: entries that count; later ones are not looked at.
        shards: those that these entries list.

    Raises:
        CorruptOutput: an entry that should be there is missing or damaged.
    """
    chosen = _spread(num_entries)
    entries = [entry for seq in chosen for entry in iter_entries(store, seq, seq + 1)]
    examples: dict[str, list[Rejected]] = {}
    withdrawn = {one.ref.clip_id for entry in entries for one in entry.reopened}
    for entry in entries:
        for one in entry.rejected:
            some = examples.setdefault(one.reason, [])
            if len(some) < EXAMPLES and one.ref.clip_id not in withdrawn:
                some.append(one)
    return History(
        num_entries,
        len(entries),
        tuple(_spans(entries, shards)),
        sum((entry.actors for entry in entries if entry.actors), ActorUse()),
        tuple(_time(entry) for entry in entries if entry.claim is not None),
        {reason: tuple(some) for reason, some in examples.items() if some},
    )


def _spread(count: int) -> list[int]:
    """At most MAX_ENTRIES numbers from 0 to ``count`` - 1, both included."""
    if count <= MAX_ENTRIES:
        return list(range(count))
    return [int(seq) for seq in np.linspace(0, count - 1, MAX_ENTRIES).round()]


def _spans(entries: Sequence[ManifestEntry], shards: ShardList) -> Iterable[Span]:
    if len(entries) < 2 or not len(shards):
        return
    seqs = np.array([entry.seq for entry in entries])
    times = np.maximum.accumulate([_time(entry).timestamp() for entry in entries])
    num_spans = min(MAX_SPANS, len(entries) - 1)  # finer than commits would be noise
    edges = np.linspace(times[0], max(times[-1], times[0] + 1.0), num_spans + 1)
    when = np.interp(shards.table.column("seq").to_numpy(), seqs, times)
    place = _places(when, edges)
    clips, codes = (
        np.bincount(place, shards.table.column(name).to_numpy(), num_spans)
        for name in ("num_clips", "num_codes")
    )
    actors: dict[int, ActorUse] = {}
    previous = times[0]
    for entry, until in zip(entries, times, strict=True):
        if entry.actors is not None:
            for span, share in _overlaps(previous, until, edges):
                actors[span] = actors.get(span, ActorUse()) + _part(entry.actors, share)
        previous = until
    width = float(edges[1] - edges[0])
    for number in range(num_spans):
        yield Span(
            datetime.fromtimestamp(float(edges[number]), timezone.utc),
            width,
            int(clips[number]),
            int(codes[number]),
            actors.get(number, ActorUse()),
        )


def _places(when: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.clip(np.searchsorted(edges, when, side="right") - 1, 0, len(edges) - 2)


def _overlaps(begin: float, end: float, edges: NDArray[np.float64]) -> Iterable[tuple[int, float]]:
    """The spans that a stretch of time touches, and the share of it that lies in each."""
    first, last = _places(np.array([begin, end]), edges)
    if end <= begin:
        yield int(last), 1.0
        return
    for span in range(first, last + 1):
        inside = min(end, edges[span + 1]) - max(begin, edges[span])
        if inside > 0:
            yield span, float(inside / (end - begin))


def _part(use: ActorUse, share: float) -> ActorUse:
    return ActorUse(
        {key: value * share for key, value in use.spent_s.items()},
        {key: value * share for key, value in use.up_s.items()},
    )


def _time(entry: ManifestEntry) -> datetime:
    time = datetime.fromisoformat(entry.written_at)
    return time if time.tzinfo else time.replace(tzinfo=timezone.utc)
