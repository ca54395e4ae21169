"""What waits for an actor: items of the plan, cut sources, decoded clips, shards, suspects."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from heapq import heapify, heappop, heappush

from tokpipe.runtime.dispatch.outbox import Outbox
from tokpipe.runtime.dispatch.protocol import Clip, FetchPlan, Lease, Planned, StreamId
from tokpipe.types import STAGES, Stage, WorkItem


class Queues:
    """All work that is not in flight, in the order in which it is handed out.

    Pieces of streamed clips wait in ``StreamedClips``, except suspects and retries.
    """

    def __init__(self, out: Outbox) -> None:
        self._out = out
        self._plan_is_asked = False
        self._plan_is_exhausted = False
        self._items: deque[WorkItem] = deque()
        self._segments: deque[tuple[WorkItem, range]] = deque()
        """Cut sources, and their segments that are not leased yet."""
        self._waiting: dict[Stage, deque[Lease]] = {"encode": deque(), "write": deque()}
        """Decoded clips that wait for an encoder, and shards that wait for a writer."""
        self._suspects: dict[Stage, deque[Lease]] = {stage: deque() for stage in STAGES}
        self._retries: list[tuple[float, int, Lease]] = []  # A heap, by when each is due

    def num_waiting(self, stage: Stage) -> int:
        """Leases that wait for an encoder or writer, without suspects and retries."""
        return len(self._waiting[stage])

    def has_suspects(self, stage: Stage) -> bool:
        return bool(self._suspects[stage])

    @property
    def nothing_before_write(self) -> bool:
        """Nothing waits to be planned, decoded or encoded."""
        suspects = self._suspects["decode"], self._suspects["encode"]
        waiting = self._items, self._segments, self._waiting["encode"], self._retries, *suspects
        return self._plan_is_exhausted and not self._plan_is_asked and not any(waiting)

    def ask_for_plan(self, low: int) -> None:
        """Fetch more of the plan if fewer than ``low`` items wait."""
        if not self._plan_is_exhausted and not self._plan_is_asked and len(self._items) < low:
            self._plan_is_asked = True
            self._out.emit(FetchPlan(2 * low))

    def planned(self, event: Planned) -> None:
        self._plan_is_asked = False
        self._plan_is_exhausted = event.exhausted
        self._items.extend(event.items)

    def add(self, lease: Lease) -> None:
        self._waiting[lease.stage].append(lease)

    def add_segments(self, item: WorkItem, total: int) -> None:
        """A source turned out to be cut: its segments after the first become work too."""
        self._segments.append((item, range(1, total)))

    def add_suspect(self, lease: Lease) -> None:
        """Run a lease alone on an actor, because the last one to hold it was lost."""
        self._suspects[lease.stage].append(lease)

    def add_retry(self, due: float, number: int, lease: Lease) -> None:
        """Try a lease again at a later time; ``number`` orders leases that are due together."""
        heappush(self._retries, (due, number, lease))

    def decode_again(self, items: Sequence[WorkItem]) -> None:
        self._items.extendleft(reversed(items))

    def put_back(self, lease: Lease) -> None:
        """Put a lease, not of a streamed clip, in front of all that waits for its stage."""
        if lease.stage == "decode":
            self.decode_again(lease.items)
        else:
            self._waiting[lease.stage].appendleft(lease)

    def next_suspect(self, stage: Stage) -> Lease | None:
        return self._suspects[stage].popleft() if self._suspects[stage] else None

    def next_decode(self, max_clips: int) -> Lease | None:
        """Consecutive segments of one source, or single clips."""
        if self._segments:
            item, segments = self._segments.popleft()
            if rest := segments[max_clips:]:
                self._segments.appendleft((item, rest))
            items = [replace(item, segment=one) for one in segments[:max_clips]]
        else:
            items = [self._items.popleft() for _ in range(min(max_clips, len(self._items)))]
        return Lease("decode", tuple(map(Clip, items))) if items else None

    def next(self, stage: Stage) -> Lease | None:
        """The next lease for an encoder or writer."""
        return self._waiting[stage].popleft() if self._waiting[stage] else None

    def due_retries(self, now: float) -> Iterator[Lease]:
        """Take out the leases whose pause is over."""
        while self._retries and self._retries[0][0] <= now:
            yield heappop(self._retries)[2]

    def forget(self, stream_id: StreamId) -> None:
        """Drop the suspects and retries of a streamed clip that has ended."""
        self._retries = [one for one in self._retries if one[2].stream != stream_id]
        heapify(self._retries)
        for stage, suspects in self._suspects.items():
            self._suspects[stage] = deque(one for one in suspects if one.stream != stream_id)
