"""What a job may take and cost on spot nodes, and the best cluster."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import ceil, inf
from typing import NamedTuple

import numpy as np

from infra.spot.play import Pace, Play
from infra.spot.trace import Trace
from tokpipe.config import JobConfig
from tokpipe.errors import ConfigError
from tokpipe.formats import job_record
from tokpipe.formats.manifest import load_state, read_entries
from tokpipe.runtime.assemble import limits_of
from tokpipe.runtime.dispatch.pools import size_pools
from tokpipe.runtime.dispatch.protocol import Capacity
from tokpipe.storage import Store
from tokpipe.telemetry.account import OF_STAGE
from tokpipe.telemetry.human import counted, duration
from tokpipe.types import STAGES

NUM_PLAYS, MAX_CLIPS = 50, 2000  # Of a cluster that is shown: more clips are played as longer ones
NUM_TRIALS, TRIAL_CLIPS = 8, 500  # Of one that is tried
CLIPS_PER_ENCODER = 20  # At least
MAX_ENTRIES = 256  # Of the manifest, which are enough to know the mean of
SPEED_DEVIATION = 0.1  # By which the logarithm of a run's speed differs from the one measured


def measured(store: Store) -> Pace:
    """What the actors of an output took. ConfigError: it has none, or an earlier version's."""
    state = load_state(store, job_record.read(store).num_rows)
    last, clips, sums = state.next_seq - 1, 0, Counter[str]()
    seqs = np.linspace(0, last, min(state.next_seq, MAX_ENTRIES)).round().astype(int)
    for entry in read_entries(store, seqs):
        if entry.account is not None and entry.account.up_s:
            clips += sum(len(receipt.clips) for receipt in entry.shards)
            for name in ("spent_s", "started", "starting_s"):
                amounts = getattr(entry.account, name)
                sums.update({f"{name} {key}": value for key, value in amounts.items()})
    if not clips or not all(sums[f"started {stage}"] for stage in STAGES):
        raise ConfigError(
            f"{store.uri}: it does not say how long clips take. Run some hundred clips with this "
            "job's settings, and name their output with --like"
        )
    return Pace(
        {stage: sum(sums[f"spent_s {one}"] for one in OF_STAGE[stage]) / clips for stage in STAGES},
        {stage: sums[f"starting_s {stage}"] / sums[f"started {stage}"] for stage in STAGES},
        state.totals.num_codes / state.totals.num_clips,
    )


class Range(NamedTuple):
    """Percentiles of all plays."""

    p10: float
    p50: float
    p90: float


class OnCluster(NamedTuple):
    """A job on so many nodes of each kind, at the most."""

    nodes: Mapping[str, int]
    encoders: int
    decoders: int
    duration_s: Range
    cost: Range

    @property
    def text(self) -> str:
        nodes = ", ".join(f"{number} {kind}" for kind, number in self.nodes.items() if number)
        actors = f"{counted(self.encoders, 'encoder')}, {counted(self.decoders, 'decoder')}"
        took, cost = map(duration, self.duration_s), (f"{one:,.2f}" for one in self.cost)
        return f"{nodes} ({actors}): time {' < '.join(took)}, cost {' < '.join(cost)}"


@dataclass(frozen=True)
class SpotForecast:
    """A job on the nodes that are given, and on the best for a deadline or a budget."""

    given: OnCluster
    best: OnCluster | None
    is_enough: bool  # Nine in ten plays keep to the deadline or the budget

    def lines(self) -> Iterator[str]:
        yield f"  spot, P10 < P50 < P90 of {NUM_PLAYS} plays of the trace:"
        yield f"  {self.given.text}"
        if self.best:
            yield f"  {'best' if self.is_enough else 'not enough, but nearest'}: {self.best.text}"


class Plays:
    """Plays of a job through a trace, each from a moment drawn at random."""

    def __init__(self, job: JobConfig, num_clips: int, pace: Pace, trace: Trace) -> None:
        has_gpus = any(one.gpus for one in trace.kinds.values())
        on_gpu = has_gpus if job.encode.device == "auto" else job.encode.device == "cuda"
        # No deadline must hit clips that stand for many.
        pools = {stage: getattr(job.runtime, stage) for stage in STAGES}
        endless = {f"{k}": v.model_copy(update={"lease_deadline_s": inf}) for k, v in pools.items()}
        self._limits = replace(
            limits_of(job, "cuda" if on_gpu else "cpu"),
            runtime=job.runtime.model_copy(update=endless),
            batch_chunks=1,
            plan_chunks=lambda num_frames: (),
        )
        self._num_clips, self._pace, self._trace = max(1, num_clips), pace, trace

    def forecast(
        self, nodes: Mapping[str, int], *, deadline_s: float = inf, budget: float = inf
    ) -> SpotForecast:
        """Forecast the job on these nodes, or all of the trace. ConfigError: they cannot work."""
        most = self._trace.most
        if unknown := nodes.keys() - most.keys():
            raise ConfigError(f"--nodes {min(unknown)}: the trace has only {', '.join(most)}")
        wanted = {kind: nodes.get(kind, 0) if nodes else number for kind, number in most.items()}
        if not self._has_room(wanted):
            what = "GPU" if self._limits.on_gpu else "CPU"
            raise ConfigError(f"there is no {what} to encode on: the job wants {wanted}")
        given, best = self._on(wanted, NUM_PLAYS, MAX_CLIPS), None
        if min(deadline_s, budget) < inf:
            best = self._best(wanted, deadline_s, budget)
        found = best or given
        is_enough = found.duration_s.p90 <= deadline_s and found.cost.p90 <= budget
        return SpotForecast(given, best, is_enough)

    def _best(self, nodes: dict[str, int], deadline_s: float, budget: float) -> OnCluster:
        """Find the cheapest cluster for a deadline, or the fastest for a budget, step by step."""
        known = dict[str, tuple[float, float]]()

        def badness(nodes: dict[str, int]) -> tuple[float, float]:
            if (key := str(nodes)) not in known:
                found = self._on(nodes, NUM_TRIALS, TRIAL_CLIPS)
                excess = max(1.0, found.duration_s.p90 / deadline_s, found.cost.p90 / budget)
                known[key] = excess, (found.cost if budget == inf else found.duration_s).p50
            return known[key]

        while True:
            near = [nodes]
            for kind, most in self._trace.most.items():
                for step in {1, nodes[kind] // 2}:
                    fewer, more = max(0, nodes[kind] - step), min(nodes[kind] + step, most)
                    near += [{**nodes, kind: fewer}, {**nodes, kind: more}]
            if (best := min(filter(self._has_room, near), key=badness)) == nodes:
                return self._on(nodes, NUM_PLAYS, MAX_CLIPS)
            nodes = best

    def _capacity(self, nodes: Mapping[str, int]) -> Capacity:
        every = ((kind, one) for kind, number in nodes.items() for one in range(number))
        return Capacity({f"{kind} {one}": self._trace.kinds[kind] for kind, one in every})

    def _has_room(self, nodes: Mapping[str, int]) -> bool:
        return self._capacity(nodes).of()[self._limits.on_gpu] > 0

    def _on(self, nodes: Mapping[str, int], num_plays: int, most_clips: int) -> OnCluster:
        limits, capacity, pace = self._limits, self._capacity(nodes), self._pace
        sizes = size_pools(capacity, limits.runtime, pace.clip_s, on_gpu=limits.on_gpu)
        # In place of too many clips, fewer that take as much longer.
        each = ceil(self._num_clips / max(most_clips, CLIPS_PER_ENCODER * sizes.encode))
        limits = replace(
            limits,
            clips_per_lease=max(1, limits.clips_per_lease // each),
            usual_clips=max(1, limits.usual_clips // each),
        )
        kinds = {kind: (self._trace.kinds[kind], number) for kind, number in nodes.items()}
        outcomes = []
        for seed in range(num_plays):
            rng = np.random.default_rng(seed)
            slower = each * rng.lognormal(0, SPEED_DEVIATION)
            clip_s = {stage: seconds * slower for stage, seconds in pace.clip_s.items()}
            played = Pace(clip_s, pace.start_s, pace.codes_per_clip * each)
            changes = self._trace.since(rng.uniform(0, self._trace.period_s))
            play = Play(limits, played, ceil(self._num_clips / each), kinds, changes, seed)
            outcomes.append(play.run())
        took, cost = (
            Range(*one) for one in np.percentile(outcomes, (10, 50, 90), axis=0).T.tolist()
        )
        return OnCluster(nodes, sizes.encode, sizes.decode, took, cost)
