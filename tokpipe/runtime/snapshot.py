"""The state of a job at one moment, and what it waits for: what progress, logs and metrics show."""

import json
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from tokpipe.config.job import PoolConfig
from tokpipe.formats.manifest import ManifestState
from tokpipe.runtime.dispatch import Dispatcher
from tokpipe.runtime.dispatch.pools import gpus_per_encoder
from tokpipe.telemetry.account import Account
from tokpipe.telemetry.human import duration
from tokpipe.types import STAGES, Stage

_PLACEMENT = {"accelerator_type", "resources", "labels"}
RECENT_S = 60.0  # Rates cover this time, so that a slow start does not distort them for hours
MIN_RATE_S = 5.0  # Seconds of encoding before the time left is estimated


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a job at one moment."""

    total: int  # Clips that the plan is known to hold
    expected: int  # The same if unopened rows are cut into as many clips as the opened ones
    passed: Mapping[Stage, int]  # Clips that each stage is done with, earlier runs included
    actors: Mapping[Stage, int]
    rejected: Mapping[str, int]  # Rejected clips of the output by reason
    num_rows: int = 0
    num_rows_done: int = 0  # Plan rows of which every clip is tokenized or rejected
    run: Account = field(default_factory=Account)  # What this run has done so far
    recent: Account = field(default_factory=Account)  # What it did over the last RECENT_S
    recent_s: float = 0.0  # Seconds that ``recent`` covers
    encoding_s: float = 0.0  # Seconds since the first encoder was up
    elapsed_s: float = 0.0  # Seconds since the run started
    pieces: tuple[int, int, float] = (0, 0, 0.0)  # See ``StreamedClips.pieces``
    paths: Mapping[tuple[str, ...], int] = field(default_factory=dict)
    """Encoders on GPUs by the fields of ``EncoderPath`` but the last; 0 where there were any."""
    recent_part: float = 0.0  # Clips that recent pieces are worth, beyond those in ``recent``
    waiting_for: str = ""  # What holds the job up; empty while every stage can work

    @property
    def share_done(self) -> float:
        """Fraction of the expected clips that are committed, 0 to 1."""
        return min(1.0, self.passed["write"] / self.expected) if self.expected else 1.0

    @property
    def left_s(self) -> float | None:
        """Seconds to the end if clips settle as fast as in the last minute; None without a rate."""
        # Encoding sets the pace. Commits come in bursts, as shards fill up.
        stage: Stage = "encode" if self.passed["encode"] < self.expected else "write"
        part = stage == "encode"
        left = self.expected - self.passed[stage] - part * self.pieces[2]
        settled = self.recent.passed(stage) + part * self.recent_part
        if left > 0 and (settled <= 0 or self.encoding_s < MIN_RATE_S):
            return None
        return max(0, left) * min(self.recent_s, self.encoding_s) / max(settled, 1e-9)

    def clips_per_s(self, stage: Stage) -> float:
        """Recent speed of a stage."""
        passed = self.recent.passed(stage) + (stage == "encode") * self.recent_part
        return passed / self.recent_s if self.recent_s > 0 else 0.0


class Snapshots:
    """Takes snapshots of a run that starts from the output's current state."""

    def __init__(self, state: ManifestState, started: float) -> None:
        self._state, self._started = state, started
        self._encoding_since: float | None = None
        self._paths: dict[tuple[str, ...], int] = {}
        self._settled_before = state.totals.num_clips + state.totals.num_rejected
        committed = state.committed
        self._unopened_before, self._left_before = committed.num_unopened, committed.num_left
        self._points: deque[tuple[float, Account, float]] = deque()
        """Earlier times, from RECENT_S ago on, and the account and pieces at each."""

    def take(self, dispatcher: Dispatcher) -> Snapshot:
        run, committed = dispatcher.out.account, self._state.committed
        total = self._settled_before + self._left_before + run.num_extra_clips
        unopened = max(0, self._unopened_before - run.num_opened)
        now, pieces = time.monotonic(), dispatcher.streams.pieces
        self._points.append((now, run, pieces[2]))
        while len(self._points) > 2 and self._points[1][0] < now - RECENT_S:
            self._points.popleft()
        begin, earlier, part = self._points[0]
        actors = {stage: dispatcher.fleet.num_up[stage] for stage in STAGES}
        up = (one.path for one in dispatcher.fleet.actors.values() if one.up)
        paths = Counter(tuple(map(str, path[:-1])) for path in up if path is not None)
        self._paths = {**dict.fromkeys(self._paths, 0), **paths}
        if self._encoding_since is None and actors["encode"]:
            self._encoding_since = now
        return Snapshot(
            total=total,
            expected=total + round(unopened * run.num_extra_clips / max(1, run.num_opened)),
            passed={stage: self._settled_before + run.passed(stage) for stage in STAGES},
            actors=actors,
            rejected=dict(self._state.totals.rejected),  # a copy: another thread counts commits
            num_rows=committed.num_rows,
            num_rows_done=committed.num_done,
            run=run,
            recent=run - earlier,
            recent_s=now - begin,
            encoding_s=now - (self._encoding_since or now),
            elapsed_s=now - self._started,
            pieces=pieces,
            paths=self._paths,
            recent_part=pieces[2] - part,
            waiting_for=waiting_for(dispatcher, now),
        )


def waiting_for(parts: Dispatcher, now: float) -> str:
    """Return what holds the job up; empty while every stage has a worker."""
    if parts.out.is_over:
        return ""
    if parts.settlement.is_stopping:
        left_s = max(0.0, parts.settlement.end_by - now)
        return f"stopping: committing finished clips, {duration(left_s)} at most"
    fleet = parts.fleet
    if not (idle := [stage for stage in STAGES if not fleet.num_up[stage]]):
        return ""
    if lack := no_room(parts):
        lower = ", or lower runtime.encode.gpus" if lack.endswith("in all") else ""
        return f"{lack}. Add nodes (an autoscaler does){lower}"
    *others, last = [f"{fleet.num[stage] or ''} {stage}".strip() for stage in idle]
    what = f"{', '.join(others)} and {last}" if others else last
    workers = "worker" if sum(fleet.num[stage] for stage in idle) == 1 else "workers"
    since = min(fleet.last_up.get(stage, now) for stage in idle)
    return f"starting {what} {workers} ({now - since:.0f} s)"


def no_room(parts: Dispatcher) -> str:
    """Return which stage no node can run. One that lacks CPUs starts an actor that needs none."""
    capacity, limits, fleet = parts.pools.capacity, parts.pools.limits, parts.fleet
    if capacity is None or parts.out.is_over or parts.settlement.is_stopping:
        return ""
    for stage in STAGES:
        pool: PoolConfig = getattr(limits.runtime, stage)
        wanted = pool.model_dump(include=_PLACEMENT, exclude_defaults=True)
        if wanted and not fleet.num_up[stage] and not capacity.most(stage):
            asked = json.dumps(wanted, ensure_ascii=False)[1:-1].replace('"', "")
            found = f"no room for {stage} workers: no node has what runtime.{stage} requires"
            return f"{found}, {asked} (`ray status -v` lists what nodes have)"
    encoders = [one for one in fleet.actors.values() if one.stage == "encode"]
    is_waiting = limits.on_gpu and encoders and not any(one.is_placed for one in encoders)
    need, (_, gpus) = gpus_per_encoder(limits.runtime), capacity.of()
    if is_waiting and need > gpus:
        return (
            f"no room for encode workers: each requests {need:g} GPU, and the cluster has "
            f"{gpus:g} in all"
        )
    return ""
