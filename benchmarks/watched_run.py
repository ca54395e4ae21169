"""A whole job as ``tokpipe run`` runs it, with times of its events."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster
from rich.console import Console

from benchmarks.processes import resident_mb
from tokpipe.config import JobConfig, parse_job
from tokpipe.formats.manifest import Totals
from tokpipe.runtime.assemble import JobOutput, Run
from tokpipe.runtime.cluster import connected
from tokpipe.runtime.dispatch import Dispatcher
from tokpipe.runtime.dispatch.protocol import ActorUp, Command, Event, Finish, LeaseDone
from tokpipe.runtime.shell import Shell
from tokpipe.telemetry.account import Account
from tokpipe.types import STAGES, Stage

START_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Sample:
    """The state of a run at one moment."""

    at: float
    committed: int
    memory_mb: float


@dataclass
class WatchedRun:
    """What was recorded. Times are those of one monotonic clock."""

    began: float = 0.0
    """The shell started to run."""
    ready: float | None = None
    """Every stage had an actor that was up."""
    ended: float = 0.0
    """Everything was committed."""
    num_events: int = 0
    num_leases: dict[Stage, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 0))
    first_done: dict[Stage, float] = field(default_factory=dict)
    """When the first lease of each stage began, as its actor reports."""
    last_done: dict[Stage, float] = field(default_factory=dict)
    probed: float = 0.0
    """Growth of the probed value from all stages being up to the end."""
    samples: list[Sample] = field(default_factory=list)
    account: Account = field(default_factory=Account)
    totals: Totals = field(default_factory=Totals)

    @property
    def seconds(self) -> float:
        """From all stages being up to the last commit."""
        assert self.ready is not None, "a stage never came up"
        return self.ended - self.ready


def _watch(dispatcher: Dispatcher, run: WatchedRun, probe: Callable[[], float]) -> None:
    """Record in ``run`` what the dispatcher handles, and when."""
    handle = dispatcher.handle

    def watched(event: Event, now: float) -> list[Command]:
        run.num_events += 1
        if isinstance(event, LeaseDone) and (
            flight := dispatcher.fleet.attempts.get(event.attempt)
        ):
            stage = flight.lease.stage
            run.num_leases[stage] += 1
            run.first_done.setdefault(stage, now - event.busy_s)
            run.last_done[stage] = now
        commands = handle(event, now)
        are_up = isinstance(event, ActorUp) and all(dispatcher.fleet.num_up[s] for s in STAGES)
        if are_up and run.ready is None:
            run.ready = now
            run.probed = -probe()
        if commands and isinstance(commands[-1], Finish):
            run.probed += probe()
        return commands

    dispatcher.handle = watched  # type: ignore[method-assign]


def run_watched(
    job: JobConfig,
    change: Callable[[Run], Run] = lambda same: same,
    *,
    probe: Callable[[], float] = lambda: 0.0,
) -> WatchedRun:
    """Run a new job to its end, with the real shell, dispatcher, feed, committer and store.

    Args:
        change: replaces the job's stages, in the run.
        probe: called when all stages are up, and at the end.
    """
    watched, console = WatchedRun(), Console(quiet=True)
    output = JobOutput(job)
    with connected(job.runtime.cluster):
        output.start(console)
        run = Run(output, console)
        _watch(run.dispatcher, watched, probe)

        def sample() -> None:
            committed = run.dispatcher.out.account.clips.get("write", 0)
            watched.samples.append(Sample(time.monotonic(), committed, resident_mb()))

        watched.began = time.monotonic()
        finish = Shell(change(run)).run(sample)
        watched.ended = time.monotonic()
    assert finish.outcome == "done"
    watched.account, watched.totals = run.dispatcher.out.account, run.committer.state.totals
    return watched


def job_of(settings: Mapping[str, Any]) -> JobConfig:
    """Parse settings as those of a job file."""
    return parse_job(json.dumps(dict(settings)), name="benchmark", root=Path.cwd())


@contextmanager
def cluster_of(num_cpus: int) -> Iterator[str]:
    """Start a Ray cluster of one node; yield its address."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # By default workers yield to all other programs, which peers do not.
    os.environ.setdefault("RAY_worker_niceness", "0")
    head = {"num_cpus": num_cpus, "include_dashboard": False}
    for attempt in range(START_ATTEMPTS):
        try:
            cluster = Cluster(initialize_head=True, head_node_args=head)
            break
        except Exception:  # what Ray raises after 30 s, on a busy machine
            if attempt == START_ATTEMPTS - 1:
                raise
    try:
        yield cluster.address
    finally:
        cluster.shutdown()
