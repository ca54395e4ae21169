"""``tokpipe plan --spot``: what a job may take and cost on spot nodes, and the best cluster."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import ceil, inf
from typing import NamedTuple

import numpy as np

from tokpipe.config import JobConfig
from tokpipe.errors import ConfigError
from tokpipe.formats import job_record
from tokpipe.formats.manifest import load_state, read_entries
from tokpipe.runtime.assemble import limits_of
from tokpipe.runtime.spot.play import Outcome, Pace, Play
from tokpipe.runtime.spot.trace import Trace
from tokpipe.storage import Store
from tokpipe.telemetry.account import OF_STAGE
from tokpipe.telemetry.human import counted, duration
from tokpipe.types import STAGES, Stage

NUM_PLAYS, NUM_TRIALS = 50, 8  # Of a cluster that is shown; of one that is tried for a better one
MAX_CLIPS, CLIPS_PER_ENCODER = 2000, 20  # Played one by one; more are played as longer ones
MAX_ENTRIES = 256  # Of the manifest, which are enough to know the mean of
SPEED_DEVIATION = 0.05  # By which the logarithm of a run's speed differs from the one measured


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


_Nodes = tuple[tuple[str, int], ...]  # Of each kind, as a key of a cache


class Range(NamedTuple):
    """Percentiles of all plays."""

    p10: float
    p50: float
    p90: float


@dataclass(frozen=True)
class OnCluster:
    """A job on so many nodes of each kind at the most: actors at a time, seconds and cost."""

    nodes: Mapping[str, int]
    actors: Mapping[Stage, int]
    duration_s: Range
    cost: Range

    @property
    def text(self) -> str:
        nodes = ", ".join(f"{number} {kind}" for kind, number in self.nodes.items() if number)
        actors = ", ".join(counted(self.actors[stage], f"{stage}r") for stage in STAGES[:2])
        took, cost = map(duration, self.duration_s), (f"{one:,.2f}" for one in self.cost)
        return f"{nodes} ({actors}): time {' < '.join(took)}, cost {' < '.join(cost)}"


@dataclass(frozen=True)
class SpotForecast:
    """A job on the cluster that is given, and on the best one for a deadline or a budget."""

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

    def __init__(
        self, job: JobConfig, num_clips: int, pace: Pace, trace: Trace, *, node_start_s: float
    ) -> None:
        has_gpus = any(one.gpus for one in trace.kinds.values())
        on_gpu = has_gpus if job.encode.device == "auto" else job.encode.device == "cuda"
        self._unit = "gpus" if on_gpu else "cpus"  # What encoders need
        self._limits = limits_of(job, "cuda" if on_gpu else "cpu")
        self._num_clips, self._pace, self._trace = max(1, num_clips), pace, trace
        self._node_start_s = node_start_s
        self._on = cache(self._played)

    def forecast(
        self, nodes: Mapping[str, int], *, deadline_s: float = inf, budget: float = inf
    ) -> SpotForecast:
        """Forecast the job on these nodes, or all of the trace. ConfigError: they cannot work."""
        most = self._trace.most
        if unknown := nodes.keys() - most.keys():
            raise ConfigError(f"--nodes {min(unknown)}: the trace has only {', '.join(most)}")
        wanted = {kind: nodes.get(kind, 0) if nodes else number for kind, number in most.items()}
        if not self._num_encoders(wanted):
            raise ConfigError(f"no node of {wanted} has {self._unit} to encode with")
        given, best = self._on(tuple(wanted.items()), NUM_PLAYS), None
        if min(deadline_s, budget) < inf:
            best = self._best(tuple(wanted.items()), deadline_s, budget)
        found = best or given
        is_enough = found.duration_s.p90 <= deadline_s and found.cost.p90 <= budget
        return SpotForecast(given, best, is_enough)

    def _best(self, nodes: _Nodes, deadline_s: float, budget: float) -> OnCluster:
        """The cheapest cluster for a deadline, or the fastest for a budget, found step by step."""

        def badness(nodes: _Nodes) -> tuple[float, float]:
            found = self._on(nodes, NUM_TRIALS)
            excess = max(1.0, found.duration_s.p90 / deadline_s, found.cost.p90 / budget)
            return excess, found.cost.p50 if budget == inf else found.duration_s.p50

        while True:
            near = [nodes]
            for kind, number in nodes:
                for step in {1, max(1, number // 4)}:
                    fewer, more = max(0, number - step), min(number + step, self._trace.most[kind])
                    near += [tuple({**dict(nodes), kind: n}.items()) for n in (fewer, more)]
            best = min((one for one in near if self._num_encoders(dict(one))), key=badness)
            if best == nodes:
                return self._on(nodes, NUM_PLAYS)
            nodes = best

    def _num_encoders(self, nodes: Mapping[str, int]) -> float:
        """How many encoders so many nodes have room for, about."""
        each: dict[str, float] = {k: getattr(r, self._unit) for k, r in self._trace.kinds.items()}
        return sum(number * each[kind] for kind, number in nodes.items())

    def _played(self, nodes: _Nodes, num_plays: int) -> OnCluster:
        plays = [self._play(dict(nodes), seed) for seed in range(num_plays)]
        took, cost = [one.duration_s for one in plays], [one.cost for one in plays]
        return OnCluster(
            dict(nodes),
            {stage: max(one.actors[stage] for one in plays) for stage in STAGES},
            *(Range(*np.percentile(values, (10, 50, 90)).tolist()) for values in (took, cost)),
        )

    def _play(self, nodes: Mapping[str, int], seed: int) -> Outcome:
        rng = np.random.default_rng(seed)
        # In place of many clips, fewer that take as much longer, which no deadline must hit.
        most = max(MAX_CLIPS, CLIPS_PER_ENCODER * self._num_encoders(nodes))
        each, runtime = ceil(self._num_clips / most), self._limits.runtime
        endless = {
            str(stage): getattr(runtime, stage).model_copy(update={"lease_deadline_s": inf})
            for stage in STAGES
        }
        limits = replace(
            self._limits,
            runtime=runtime.model_copy(update=endless),
            clips_per_lease=max(1, self._limits.clips_per_lease // each),
            usual_clips=max(1, self._limits.usual_clips // each),
            batch_chunks=1,
            plan_chunks=lambda num_frames: (),
        )
        play = Play(
            limits,
            self._pace.times(each, rng.lognormal(0, SPEED_DEVIATION)),
            ceil(self._num_clips / each),
            {kind: (self._trace.kinds[kind], number) for kind, number in nodes.items()},
            self._trace.since(rng.uniform(0, self._trace.period_s)),
            node_start_s=self._node_start_s,
            seed=seed,
        )
        return play.run()
