"""The real dispatcher over a simulated cluster: thousands of actors, no process.

Time is virtual. This measures what the driver's own code costs, and how well its leases keep the
encoders busy.
"""

import heapq
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.free_stages import receipt_of, ref_of
from tokpipe.config.job import ChunkingConfig, RuntimeConfig
from tokpipe.config.traits import TokenizerTraits
from tokpipe.formats.manifest import CommittedRows
from tokpipe.plan import PlanReader
from tokpipe.runtime.assemble import Feed
from tokpipe.runtime.commit import Committer
from tokpipe.runtime.dispatch import Dispatcher, Limits
from tokpipe.runtime.dispatch.protocol import (
    ActorId,
    ActorPlaced,
    ActorUp,
    Capacity,
    Commit,
    Committed,
    DecodedInfo,
    Dispatch,
    EncodedInfo,
    Event,
    FetchPlan,
    Finish,
    KillActor,
    Lease,
    LeaseDone,
    Release,
    Room,
    StartActor,
    Tick,
)
from tokpipe.stages.chunks import plan_chunks
from tokpipe.types import STAGES, ClipRef, Stage, WorkItem

TRAITS = TokenizerTraits(temporal_stride=4, spatial_stride=8, codebook_size=8192)
GPU_LIMITS = Limits(
    runtime=RuntimeConfig(),
    on_gpu=True,
    clips_per_lease=20,
    shard_bytes=16 * 2**20,
    shard_max_age_s=300.0,
    bytes_per_code=1.6,
    plan_chunks=cache(partial(plan_chunks, chunking=ChunkingConfig(), traits=TRAITS)),
)
"""What a dispatcher knows of a job on GPUs."""

Kind = tuple[tuple[int, int], int]
"""Height and width of a clip's frames, and how many there are."""
ONE_KIND: Mapping[Kind, float] = {((256, 256), 17): 1.0}
CODES_PER_CLIP = 5 * 32 * 32
"""Of 17 frames of 256x256, compressed 4 x 8 x 8 times."""


class EndlessRows(PlanReader):
    """Replaces a stored plan."""

    def __init__(self, num_rows: int) -> None:
        self.count = num_rows

    def iter_undone(
        self, done: Callable[[int, int], NDArray[np.bool_]]
    ) -> Iterator[list[WorkItem]]:
        for start in range(0, self.count, 4096):
            rows = range(start, min(start + 4096, self.count))
            yield [WorkItem(row, f"{row:032x}", f"s3://bucket/{row:09d}.mp4") for row in rows]


@dataclass
class VirtualRun:
    """What one simulated run measured."""

    num_clips: int = 0
    num_events: int = 0
    handling_s: float = 0.0
    """Real seconds of the dispatcher."""
    busy_s: dict[Stage, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    """Virtual seconds of all actors."""
    up_s: float = 0.0
    """Virtual seconds of encoders since the first was up."""
    steady_share: float = 0.0
    """Share of encoders' time in which they were busy, in the middle half of the run."""
    useful_share: float = 0.0
    """Share of the rows of their batches that hold a chunk, in the middle half of the run."""
    most_held: int = 0
    """The most clips whose pixels were kept at a time."""
    fetched: float = 0.0
    """Clips that encoders fetched for each one that they encoded: objects are fetched whole."""


class VirtualCluster:
    """Simulates one job on a cluster with this ``room``. ``clip_s``: mean seconds of one clip by
    stage (of one row of a batch, for encoders); each lease takes between half and one and a half
    of its clips' mean. ``kinds``: shares of the clips. ``driver_s``: what each lease costs the
    driver."""

    def __init__(
        self,
        limits: Limits,
        room: Room,
        clip_s: dict[Stage, float],
        num_clips: int,
        *,
        kinds: Mapping[Kind, float] = ONE_KIND,
        committer: Committer | None = None,
        round_trip_s: float = 0.002,
        driver_s: float = 0.0,
        on_commit: Callable[[int], None] = lambda committed: None,
    ) -> None:
        limits = replace(limits, frame_sizes=tuple({size: None for size, _ in kinds}))
        self.dispatcher = Dispatcher(limits, ref_of)
        self.capacity = Capacity({"node": room})
        self.clip_s = clip_s
        self.committer = committer
        self.round_trip_s = round_trip_s
        self.driver_s = driver_s
        self.on_commit = on_commit
        self.rng = random.Random(0)
        self.run = VirtualRun(num_clips)
        self.now = 0.0
        self._events: list[tuple[float, int, Event]] = []
        self._order = itertools.count()
        self._stages: dict[ActorId, Stage] = {}
        self._free_at: dict[ActorId, float] = {}
        self._spans: list[tuple[float, float, int, int]] = []
        """When each encode lease began and ended, its chunks, and the rows of its batches."""
        self._limits = limits
        self._kinds = self.rng.choices([*kinds], [*kinds.values()], k=num_clips)
        self._held: dict[tuple[int, int], int] = {}
        """Clips in each object of pixels that is not released."""
        self._rows = EndlessRows(num_clips)

    def play(self) -> VirtualRun:
        """Run the job to its end."""
        feed = Feed(self._rows, CommittedRows(self._rows.count))
        self._post(0.0, self.capacity)
        self._post(0.5, Tick())
        while True:
            at, _, event = heapq.heappop(self._events)
            self.now = max(self.now, at)  # later than it came if the driver was busy
            if isinstance(event, Tick):
                self._post(0.5, Tick())
            elif isinstance(event, Capacity):
                self._post(3.0, self.capacity)
            started = time.thread_time()
            commands = self.dispatcher.handle(event, self.now)
            self.run.handling_s += time.thread_time() - started
            self.run.num_events += 1
            for command in commands:
                if isinstance(command, Dispatch):
                    self.now += self.driver_s
                    self._work(command)
                elif isinstance(command, FetchPlan):
                    self._post(self.round_trip_s, feed.fetch(command.num_items))
                elif isinstance(command, StartActor):
                    self._stages[command.actor] = command.stage
                    self._post(0.1, ActorPlaced(command.actor, "node"))
                    self._post(0.2, ActorUp(command.actor))
                elif isinstance(command, KillActor):
                    self._free_at.pop(command.actor, None)
                elif isinstance(command, Release):
                    self._release(command)
                elif isinstance(command, Commit):
                    self._commit(command)
                elif isinstance(command, Finish):
                    return self._result()

    def _post(self, delay: float, event: Event) -> None:
        heapq.heappush(self._events, (self.now + delay, next(self._order), event))

    def _commit(self, command: Commit) -> None:
        if self.committer is not None:
            self.committer.commit(command.receipts, command.rejected)
        self.on_commit(self.dispatcher.out.account.clips.get("write", 0))
        self._post(0.05, Committed())

    def _work(self, command: Dispatch) -> None:
        lease, stage = command.lease, command.lease.stage
        kinds = [self._kinds[item.row] for item in lease.items]
        num_rows = len(kinds)
        if stage == "encode":
            num_real, num_rows = self._fetch(lease, kinds)
        seconds = self.clip_s[stage] * num_rows * self.rng.uniform(0.5, 1.5)
        begin = max(self.now + self.round_trip_s / 2, self._free_at.get(command.actor, 0.0))
        end = self._free_at[command.actor] = begin + seconds
        self.run.busy_s[stage] += seconds
        refs = tuple(ref_of(item) for item in lease.items)
        if stage == "decode":
            answer: object = self._decoded(command.attempt, refs, kinds)
        elif stage == "encode":
            answer = tuple(EncodedInfo(ref, (32, 32), CODES_PER_CLIP) for ref in refs)
            self._spans.append((begin, end, num_real, num_rows))
        else:
            answer = receipt_of(f"{lease.lease_id}", refs)
        done = LeaseDone(command.attempt, answer, seconds)  # type: ignore[arg-type]
        self._post(end - self.now + self.round_trip_s / 2, done)

    def _decoded(
        self, attempt: int, refs: tuple[ClipRef, ...], kinds: list[Kind]
    ) -> tuple[DecodedInfo, ...]:
        """Put clips into one object for each frame size."""
        infos = []
        for ref, (size, num_frames) in zip(refs, kinds, strict=True):
            part = self._limits.frame_sizes.index(size)
            infos.append(DecodedInfo(ref, num_frames, part=part))
            self._held[attempt, part] = self._held.get((attempt, part), 0) + 1
        self.run.most_held = max(self.run.most_held, sum(self._held.values()))
        return tuple(infos)

    def _fetch(self, lease: Lease, kinds: list[Kind]) -> tuple[int, int]:
        """Fetch the pixels of a lease; return its chunks, and the rows of its batches."""
        objects = {(place.source, place.part) for place in lease.places}
        self.run.fetched += sum(map(self._held.__getitem__, objects)) / self.run.num_clips
        batch, rows = self._limits.batch_chunks, Counter[object]()
        for size, num_frames in kinds:
            plan = self._limits.plan_chunks(num_frames)
            rows.update((size, chunk.num_input_frames) for chunk in plan)
        return rows.total(), sum(-(-number // batch) * batch for number in rows.values())

    def _release(self, command: Release) -> None:
        for part in range(len(self._limits.frame_sizes)):
            if command.part in (None, part):
                self._held.pop((command.attempt, part), None)

    def _result(self) -> VirtualRun:
        run = self.run
        num_encoders = sum(stage == "encode" for stage in self._stages.values())
        first, last = self._spans[0][0], max(end for _, end, _, _ in self._spans)
        run.up_s = num_encoders * (last - first)
        low, high = first + (last - first) / 4, last - (last - first) / 4
        inside = sum(max(0.0, min(end, high) - max(begin, low)) for begin, end, *_ in self._spans)
        run.steady_share = inside / (num_encoders * (high - low))
        steady = [(real, rows) for begin, _, real, rows in self._spans if low <= begin <= high]
        run.useful_share = sum(real for real, _ in steady) / sum(rows for _, rows in steady)
        return run
