"""The real dispatcher over a simulated cluster: thousands of actors, no process.

Time is virtual. This measures what the driver's own code costs, and how well its leases keep the
encoders busy.
"""

import heapq
import itertools
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from benchmarks.free_stages import receipt_of, ref_of
from tokpipe.config.job import RuntimeConfig
from tokpipe.formats.manifest import CommittedRows
from tokpipe.plan import PlanReader
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
    LeaseDone,
    Room,
    StartActor,
    Tick,
)
from tokpipe.runtime.feed import Feed
from tokpipe.types import STAGES, Stage, WorkItem

GPU_LIMITS = Limits(
    runtime=RuntimeConfig(),
    on_gpu=True,
    clips_per_lease=20,
    shard_bytes=16 * 2**20,
    shard_max_age_s=300.0,
    bytes_per_code=1.6,
)
"""What a dispatcher knows of a job on GPUs."""

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


class VirtualCluster:
    """Simulates one job on a cluster with this ``room``. ``clip_s``: mean seconds of one clip by
    stage; each lease takes between half and one and a half of its clips' mean. ``driver_s``: what
    each lease costs the driver."""

    def __init__(
        self,
        limits: Limits,
        room: Room,
        clip_s: dict[Stage, float],
        num_clips: int,
        *,
        committer: Committer | None = None,
        round_trip_s: float = 0.002,
        driver_s: float = 0.0,
        on_commit: Callable[[int], None] = lambda committed: None,
    ) -> None:
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
        self._spans: list[tuple[float, float]] = []
        """When each encode lease began and ended."""
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
                elif isinstance(command, Commit):
                    self._commit(command)
                elif isinstance(command, Finish):
                    return self._result()

    def _post(self, delay: float, event: Event) -> None:
        heapq.heappush(self._events, (self.now + delay, next(self._order), event))

    def _commit(self, command: Commit) -> None:
        if self.committer is not None:
            self.committer.commit(command.receipts, command.rejected)
        self.on_commit(self.dispatcher.account.clips.get("write", 0))
        self._post(0.05, Committed())

    def _work(self, command: Dispatch) -> None:
        lease, stage = command.lease, command.lease.stage
        seconds = self.clip_s[stage] * len(lease.items) * self.rng.uniform(0.5, 1.5)
        begin = max(self.now + self.round_trip_s / 2, self._free_at.get(command.actor, 0.0))
        end = self._free_at[command.actor] = begin + seconds
        self.run.busy_s[stage] += seconds
        refs = tuple(ref_of(item) for item in lease.items)
        if stage == "decode":
            answer: object = tuple(DecodedInfo(ref, 17) for ref in refs)
        elif stage == "encode":
            answer = tuple(EncodedInfo(ref, (32, 32), CODES_PER_CLIP) for ref in refs)
            self._spans.append((begin, end))
        else:
            answer = receipt_of(f"{lease.lease_id}", refs)
        done = LeaseDone(command.attempt, answer, seconds)  # type: ignore[arg-type]
        self._post(end - self.now + self.round_trip_s / 2, done)

    def _result(self) -> VirtualRun:
        run = self.run
        num_encoders = sum(stage == "encode" for stage in self._stages.values())
        first, last = self._spans[0][0], max(end for _, end in self._spans)
        run.up_s = num_encoders * (last - first)
        low, high = first + (last - first) / 4, last - (last - first) / 4
        inside = sum(max(0.0, min(end, high) - max(begin, low)) for begin, end in self._spans)
        run.steady_share = inside / (num_encoders * (high - low))
        return run
