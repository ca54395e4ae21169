"""What a job tells Prometheus, through the endpoint that Ray has on every node.

All of it is read from the snapshot that progress lines show too, in the driver, twice a second:
nothing is counted a second time, and no clip costs anything. ``python -m tokpipe.runtime.metrics``
prints the table of docs/monitoring.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ray.util.metrics import Counter, Gauge

from tokpipe.runtime.snapshot import Snapshot
from tokpipe.telemetry.speed import OF_STAGE, busy_shares, speed_of
from tokpipe.types import STAGES

JOB_LABELS = ("dataset", "plan_id")
"""Of every metric. ``plan_id`` is its first PLAN_ID_CHARS digits, as in the names of shards."""
PLAN_ID_CHARS = 12
MAX_REASONS = 40
"""Series of one label that comes from outside. There are some thirty reasons to reject a clip;
tokenizers of users may add more, and from here on they count as ``other``."""

Labels = tuple[str, ...]
"""Values of a metric's own labels, in their order."""


@dataclass(frozen=True)
class Metric:
    """One metric, and where in a snapshot its values are."""

    name: str
    """As Ray is told; see ``exposed``."""
    kind: Literal["counter", "gauge"]
    """Counters begin at 0 with each driver; Prometheus takes that for a restart, which it is."""
    description: str
    read: Callable[[Snapshot], Mapping[Labels, float | None]]
    labels: tuple[str, ...] = ()
    """Beside JOB_LABELS."""

    @property
    def exposed(self) -> str:
        """As Prometheus sees it: Ray puts ``ray_`` before names, and ``_total`` behind counters."""
        return f"ray_{self.name}_total" if self.kind == "counter" else f"ray_{self.name}"


def _by(counts: Mapping[Any, float]) -> dict[Labels, float | None]:
    return {(key,): value for key, value in counts.items()}


def _one(value: float | None) -> dict[Labels, float | None]:
    return {(): value}


def _stage_seconds(snapshot: Snapshot) -> dict[Labels, float | None]:
    return {
        (stage, activity): snapshot.run.spent_s.get(activity, 0.0)
        for stage in STAGES
        for activity in OF_STAGE[stage]
    }


def _speed_of_light(snapshot: Snapshot) -> dict[Labels, float | None]:
    speed = speed_of(snapshot.recent)
    return _one(None if speed is None else speed.share)


METRICS: tuple[Metric, ...] = (
    Metric(
        "tokpipe_plan_rows",
        "gauge",
        "Rows of the plan: clips, or sources that are cut into several clips.",
        lambda s: _one(s.num_rows),
    ),
    Metric(
        "tokpipe_plan_rows_done",
        "gauge",
        "Rows of which every clip is tokenized or rejected, by any run.",
        lambda s: _one(s.num_rows_done),
    ),
    Metric(
        "tokpipe_clips",
        "counter",
        "Clips that a stage has done; of `write`, those that are committed.",
        lambda s: _by({stage: s.run.clips.get(stage, 0) for stage in STAGES}),
        ("stage",),
    ),
    Metric(
        "tokpipe_frames",
        "counter",
        "Frames of committed clips.",
        lambda s: _one(s.run.num_frames),
    ),
    Metric(
        "tokpipe_codes",
        "counter",
        "Codes of committed clips.",
        lambda s: _one(s.run.num_codes),
    ),
    Metric(
        "tokpipe_source_bytes",
        "counter",
        "Bytes of source videos that decoders have fetched, or found on local disk.",
        lambda s: _one(s.run.download_bytes),
    ),
    Metric(
        "tokpipe_written_bytes",
        "counter",
        "Bytes of committed shards and their side tables.",
        lambda s: _one(s.run.written_bytes),
    ),
    Metric(
        "tokpipe_shards",
        "counter",
        "Committed shards.",
        lambda s: _one(s.run.num_shards),
    ),
    Metric(
        "tokpipe_commits",
        "counter",
        "Entries that the manifest has got.",
        lambda s: _one(s.run.num_commits),
    ),
    Metric(
        "tokpipe_rejected_clips",
        "counter",
        "Clips whose rejection is committed.",
        lambda s: _by(s.run.rejected),
        ("reason",),
    ),
    Metric(
        "tokpipe_retried_clips",
        "counter",
        "Times that a clip was tried again after it failed, or after a worker that had it alone "
        "did.",
        lambda s: _by({stage: s.run.retried.get(stage, 0) for stage in STAGES}),
        ("stage",),
    ),
    Metric(
        "tokpipe_stage_seconds",
        "counter",
        "Seconds of actors by what they went into: download, decode, transfer (an encoder had a "
        "lease and no pixels), encode, write.",
        _stage_seconds,
        ("stage", "activity"),
    ),
    Metric(
        "tokpipe_actor_seconds",
        "counter",
        "Seconds that actors were up, busy or not.",
        lambda s: _by({stage: s.run.up_s.get(stage, 0.0) for stage in STAGES}),
        ("stage",),
    ),
    Metric(
        "tokpipe_actors",
        "gauge",
        "Actors that take leases.",
        lambda s: _by(s.actors),
        ("stage",),
    ),
    Metric(
        "tokpipe_busy_ratio",
        "gauge",
        "Share of the last minute that a stage's actors were busy, 0 to 1.",
        lambda s: _by(busy_shares(s.recent)),
        ("stage",),
    ),
    Metric(
        "tokpipe_speed_of_light_ratio",
        "gauge",
        "Share of the last minute in which encoders computed, 0 to 1: what part of its encoders' "
        "own speed the job reaches.",
        _speed_of_light,
    ),
    Metric(
        "tokpipe_goodput_ratio",
        "gauge",
        "Share of the seconds that this run has held encoders for that went into committed codes.",
        lambda s: _one(s.run.goodput),
    ),
    Metric(
        "tokpipe_lost_actors",
        "counter",
        "Actors that were up and died, or were killed at a deadline.",
        lambda s: _by({stage: s.run.lost_actors.get(stage, 0) for stage in STAGES}),
        ("stage",),
    ),
    Metric(
        "tokpipe_lost_nodes",
        "counter",
        "Nodes that were lost with actors on them.",
        lambda s: _one(s.run.num_lost_nodes),
    ),
)


class Changes:
    """What Ray is to be told of one snapshot after the other: pure, and all there is to decide."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, Labels], float] = {}
        """What counters stand at."""
        self._reasons: set[str] = set()

    def of(self, snapshot: Snapshot) -> Iterator[tuple[Metric, Labels, float]]:
        """Yield what gauges are now, and what to add to counters, where there is anything.

        Work that has to be done again is taken off the counts that people see; counters cannot
        fall, so they wait until it is done again.
        """
        for metric in METRICS:
            values = metric.read(snapshot)
            if metric.labels == ("reason",):
                values = self._bounded(values)
            for labels, value in values.items():
                if value is None:
                    continue
                if metric.kind == "gauge":
                    yield metric, labels, value
                elif value > (told := self._told.get((metric.name, labels), 0.0)):
                    self._told[metric.name, labels] = value
                    yield metric, labels, value - told

    def _bounded(self, values: Mapping[Labels, float | None]) -> Mapping[Labels, float | None]:
        """Let reasons beyond MAX_REASONS be one."""
        bounded: dict[Labels, float | None] = {}
        others = 0.0
        for (reason,), value in values.items():
            if reason not in self._reasons and len(self._reasons) >= MAX_REASONS:
                others += value or 0.0
                continue
            self._reasons.add(reason)
            bounded[(reason,)] = value
        if others:
            bounded[("other",)] = others
        return bounded


class JobMetrics:
    """Hands snapshots of one run to Ray. Where Ray exports no metrics, nothing comes of it."""

    def __init__(self, dataset: str, plan_id: str) -> None:
        job = {"dataset": dataset, "plan_id": plan_id[:PLAN_ID_CHARS]}
        self._changes = Changes()
        self._series: dict[str, Counter | Gauge] = {}
        for metric in METRICS:
            make = Counter if metric.kind == "counter" else Gauge
            keys = (*JOB_LABELS, *metric.labels)
            series = make(metric.name, metric.description, keys).set_default_tags(job)
            self._series[metric.name] = series

    def show(self, snapshot: Snapshot) -> None:
        for metric, labels, value in self._changes.of(snapshot):
            series, tags = self._series[metric.name], dict(zip(metric.labels, labels, strict=True))
            if isinstance(series, Gauge):
                series.set(value, tags)
            else:
                series.inc(value, tags)


def metrics_table() -> str:
    """The metrics, as a table in Markdown."""
    rows = [
        f"| `{one.exposed}` | {one.kind} | {', '.join(f'`{key}`' for key in one.labels)} | "
        f"{one.description} |"
        for one in METRICS
    ]
    return "\n".join(["| name | kind | labels | |", "|---|---|---|---|", *rows, ""])


if __name__ == "__main__":
    print(metrics_table(), end="")
