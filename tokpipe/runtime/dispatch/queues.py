"""What waits for an actor: items of the plan, cut sources, decoded clips, shards, suspects."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush

from tokpipe.runtime.dispatch.protocol import (
    ClipLease,
    DecodeLease,
    Emit,
    EncodeLease,
    FetchPlan,
    Lease,
    Planned,
    StreamId,
    WriteLease,
)
from tokpipe.types import STAGES, Stage, WorkItem


@dataclass(slots=True)
class _CutSource:
    """Segments of a cut source that are not leased yet."""

    item: WorkItem
    next: int
    total: int


class Queues:
    """All work that is not in flight, in the order in which it is handed out.

    Pieces of streamed clips wait in ``StreamedClips``, except suspects and retries.
    """

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._plan_is_asked = False
        self._plan_is_exhausted = False
        self._items: deque[WorkItem] = deque()
        self._cut_sources: deque[_CutSource] = deque()
        self._decoded: deque[EncodeLease] = deque()
        self._shards: deque[WriteLease] = deque()
        self._suspects: dict[Stage, deque[Lease]] = {stage: deque() for stage in STAGES}
        self._retries: list[tuple[float, int, ClipLease]] = []
        """A heap, by when each is due."""

    @property
    def num_decoded(self) -> int:
        """Leases of decoded clips that wait for an encoder."""
        return len(self._decoded)

    @property
    def num_shards(self) -> int:
        """Shards that wait for a writer."""
        return len(self._shards)

    def has_suspects(self, stage: Stage) -> bool:
        return bool(self._suspects[stage])

    @property
    def nothing_before_write(self) -> bool:
        """Nothing waits to be planned, decoded or encoded."""
        return (
            self._plan_is_exhausted
            and not self._plan_is_asked
            and not self._items
            and not self._cut_sources
            and not self._decoded
            and not self._retries
            and not self._suspects["decode"]
            and not self._suspects["encode"]
        )

    # --- the plan -------------------------------------------------------------------------------

    def ask_for_plan(self, low: int) -> None:
        """Fetch more of the plan if fewer than ``low`` items wait."""
        if not self._plan_is_exhausted and not self._plan_is_asked and len(self._items) < low:
            self._plan_is_asked = True
            self._emit(FetchPlan(2 * low))

    def planned(self, event: Planned) -> None:
        self._plan_is_asked = False
        self._plan_is_exhausted = event.exhausted
        self._items.extend(event.items)

    # --- in -------------------------------------------------------------------------------------

    def add_segments(self, item: WorkItem, total: int) -> None:
        """A source turned out to be cut: its segments after the first become work too."""
        self._cut_sources.append(_CutSource(item, 1, total))

    def add_decoded(self, lease: EncodeLease) -> None:
        self._decoded.append(lease)

    def add_shard(self, lease: WriteLease) -> None:
        self._shards.append(lease)

    def add_suspects(self, leases: Iterable[Lease]) -> None:
        """Run each of these alone on an actor, because the last one to hold it was lost."""
        for lease in leases:
            self._suspects[lease.stage].append(lease)

    def add_retry(self, due: float, number: int, lease: ClipLease) -> None:
        """Try a lease again at a later time; ``number`` orders leases that are due together."""
        heappush(self._retries, (due, number, lease))

    def decode_again(self, items: tuple[WorkItem, ...]) -> None:
        self._items.extendleft(reversed(items))

    def put_back(self, lease: Lease) -> None:
        """Put a lease, not of a streamed clip, in front of all that waits for its stage."""
        if isinstance(lease, WriteLease):
            self._shards.appendleft(lease)
        elif isinstance(lease, DecodeLease):
            self.decode_again(lease.items)
        else:
            self._decoded.appendleft(lease)

    # --- out ------------------------------------------------------------------------------------

    def next_suspect(self, stage: Stage) -> Lease | None:
        suspects = self._suspects[stage]
        return suspects.popleft() if suspects else None

    def next_decode(self, max_clips: int) -> DecodeLease | None:
        """Consecutive segments of one source, or single clips."""
        if self._cut_sources:
            return DecodeLease(tuple(self._next_segments(max_clips)))
        count = min(max_clips, len(self._items))
        return DecodeLease(tuple(self._items.popleft() for _ in range(count))) if count else None

    def _next_segments(self, max_clips: int) -> Iterator[WorkItem]:
        source = self._cut_sources[0]
        last = min(source.next + max_clips, source.total)
        for segment in range(source.next, last):
            yield replace(source.item, segment=segment)
        source.next = last
        if last == source.total:
            self._cut_sources.popleft()

    def next_encode(self) -> EncodeLease | None:
        return self._decoded.popleft() if self._decoded else None

    def next_write(self) -> WriteLease | None:
        return self._shards.popleft() if self._shards else None

    def due_retries(self, now: float) -> Iterator[ClipLease]:
        """Take out the leases whose pause is over."""
        while self._retries and self._retries[0][0] <= now:
            yield heappop(self._retries)[2]

    def forget(self, stream_id: StreamId) -> None:
        """Drop the suspects and retries of a streamed clip that has ended."""
        self._retries = [one for one in self._retries if one[2].stream != stream_id]
        heapify(self._retries)
        for stage in ("decode", "encode"):
            suspects = self._suspects[stage]
            self._suspects[stage] = deque(
                one for one in suspects if isinstance(one, WriteLease) or one.stream != stream_id
            )
