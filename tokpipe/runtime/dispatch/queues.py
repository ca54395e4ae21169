"""What waits for an actor: items of the plan, cut sources, decoded clips, shards, suspects."""

from collections import Counter, OrderedDict, deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from heapq import heapify, heappop, heappush

from tokpipe.runtime.dispatch.outbox import Outbox
from tokpipe.runtime.dispatch.protocol import Clip, FetchPlan, Lease, Limits, Planned, StreamId
from tokpipe.types import STAGES, Stage, WorkItem


class Queues:
    """All work that is not in flight, in the order in which it is handed out, except pieces of
    streamed clips, which wait in ``StreamedClips`` unless they are suspects or retries.

    A batch takes an encoder as long with empty rows as without. So decoded clips wait in groups of
    one kind, with frames of one size in chunks of the same lengths, until their batches are full.
    """

    def __init__(self, limits: Limits, out: Outbox) -> None:
        self._limits, self._out = limits, out
        self._may_ask_for_plan = True
        self._plan_is_exhausted = False
        self._sources: OrderedDict[str, deque[tuple[WorkItem, range]]] = OrderedDict()
        """Rows to decode by source, each with its segments that are not leased yet. Sources that a
        decoder is busy with come last."""
        self._num_rows = 0
        self._filling: dict[Hashable, tuple[list[Clip], Counter[int]]] = {}
        """A group of each kind, oldest first, and its chunks by their number of frames."""
        self._full: dict[Hashable, deque[list[Clip]]] = {}
        """Full groups by kind, whose turns come in this order, and groups that were put back."""
        self._num_full = 0  # Clips in them
        self.shards: deque[Lease] = deque()
        self.suspects: dict[Stage, deque[Lease]] = {stage: deque() for stage in STAGES}
        """Leases to run alone on an actor, because the last one to hold each was lost."""
        self._retries: list[tuple[float, int, Lease]] = []  # A heap, by due time and id

    @property
    def num_decoded(self) -> float:
        """Clips that wait for an encoder. Those whose group is not full count half: many rare kinds
        neither keep decoders from filling the groups, nor add up without a bound."""
        return self._num_full + sum(len(clips) for clips, _ in self._filling.values()) / 2

    @property
    def nothing_before_write(self) -> bool:
        """Nothing waits to be planned, decoded or encoded."""
        suspects = self.suspects["decode"], self.suspects["encode"]
        waiting = self._sources, self._filling, self._full, self._retries, *suspects
        return self._plan_is_exhausted and not any(waiting)

    def ask_for_plan(self, low: int) -> None:
        """Fetch more of the plan if fewer than ``low`` rows wait."""
        if self._may_ask_for_plan and self._num_rows < low:
            self._may_ask_for_plan = False
            self._out.emit(FetchPlan(2 * low))

    def planned(self, event: Planned) -> None:
        self._plan_is_exhausted = event.exhausted
        self._may_ask_for_plan = not event.exhausted
        for item in event.items:
            self._waiting(item).append((item, range(item.segment, item.segment + 1)))

    def add_decoded(self, clip: Clip, num_frames: int, max_clips: int) -> None:
        """Put a clip into a group: of up to ``max_clips``, or as many as a batch has rows."""
        plan, batch = self._limits.plan_chunks(max(1, num_frames)), self._limits.batch_chunks
        lengths = Counter(chunk.num_input_frames for chunk in plan)
        kind = clip.places[0].part, *lengths
        clips, chunks = self._filling.setdefault(kind, ([], Counter()))
        clips.append(clip)
        chunks.update(lengths)
        if len(clips) >= max(max_clips, batch) or not any(n % batch for n in chunks.values()):
            del self._filling[kind]
            self._full.setdefault(kind, deque()).append(clips)
            self._num_full += len(clips)

    def add_segments(self, item: WorkItem, total: int) -> None:
        """A source turned out to be cut: its segments after the first become work too."""
        self._put_first(item, range(1, total))

    def add_retry(self, pause_s: float, lease: Lease) -> None:
        heappush(self._retries, (self._out.now + pause_s, self._out.new_id(), lease))

    def decode_again(self, items: Sequence[WorkItem]) -> None:
        for item in reversed(items):
            self._put_first(item, range(item.segment, item.segment + 1))

    def _put_first(self, item: WorkItem, segments: range) -> None:
        self._waiting(item).appendleft((item, segments))
        self._sources.move_to_end(item.source_uri, last=False)

    def _waiting(self, item: WorkItem) -> deque[tuple[WorkItem, range]]:
        self._num_rows += 1
        return self._sources.setdefault(item.source_uri, deque())

    def put_back(self, lease: Lease) -> None:
        """Put a lease, not of a streamed clip, in front of all that waits for its stage."""
        if lease.stage == "decode":
            self.decode_again(lease.items)
        elif lease.stage == "encode":
            self._full = {lease: deque([[*lease.clips]]), **self._full}
            self._num_full += len(lease.clips)
        else:
            self.shards.appendleft(lease)

    def next_decode(self, max_clips: int, source_uri: str = "") -> Lease | None:
        """Clips for a decoder that has a source, of which as many as there are; then of others."""
        clips = list[Clip]()
        while self._sources and len(clips) < max_clips:
            if source_uri not in self._sources:
                source_uri = next(iter(self._sources))
            waiting = self._sources[source_uri]
            while waiting and (room := max_clips - len(clips)):
                item, segments = waiting.popleft()
                clips += [Clip(replace(item, segment=one)) for one in segments[:room]]
                if rest := segments[room:]:
                    waiting.appendleft((item, rest))
                else:
                    self._num_rows -= 1
            if waiting:
                self._sources.move_to_end(source_uri)
            else:
                del self._sources[source_uri]
        return Lease("decode", tuple(clips)) if clips else None

    def next_encode(self, max_clips: int, *, is_idle: bool) -> Lease | None:
        """Full groups of one kind. If there are none and an encoder is idle, the oldest group."""
        if self._full:
            groups = self._full.pop(kind := next(iter(self._full)))
            clips = groups.popleft()
            while groups and len(clips) + len(groups[0]) <= max_clips:
                clips += groups.popleft()
            if groups:
                self._full[kind] = groups
            self._num_full -= len(clips)
        elif self._filling and is_idle:
            clips, _ = self._filling.pop(next(iter(self._filling)))
        else:
            return None
        return Lease("encode", tuple(clips))

    def due_retries(self) -> Iterator[Lease]:
        """Take out the leases whose pause is over."""
        while self._retries and self._retries[0][0] <= self._out.now:
            yield heappop(self._retries)[2]

    def forget(self, stream_id: StreamId) -> None:
        """Drop the suspects and retries of a streamed clip that has ended."""
        self._retries = [one for one in self._retries if one[2].stream != stream_id]
        heapify(self._retries)
        for stage, suspects in self.suspects.items():
            self.suspects[stage] = deque(one for one in suspects if one.stream != stream_id)
