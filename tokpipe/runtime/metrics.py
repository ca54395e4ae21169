"""Metrics of a job for Prometheus, exported through the endpoint that Ray runs on every node.

They are read in the driver, twice a second, from the snapshot that progress lines show: nothing is
counted twice, and no clip costs anything. ``python -m tokpipe.runtime.metrics`` prints the table
in docs/monitoring.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ray.util.metrics import Counter, Gauge

from tokpipe.runtime.snapshot import Snapshot
from tokpipe.telemetry.speed import OF_STAGE, busy_shares, speed_of
from tokpipe.types import STAGES

JOB_LABELS = ("dataset", "plan_id")
"""Labels of every metric. ``plan_id`` is its first PLAN_ID_CHARS digits, as in shard names."""
PLAN_ID_CHARS = 12
MAX_REASONS = 40
"""Series per metric by ``reason``. There are about thirty reasons to reject a clip, and custom
tokenizers may add more; further ones count as ``other``."""

Labels = tuple[str, ...]
"""Values of a metric's labels besides JOB_LABELS, in order."""
Values = Mapping[Labels, float | None]
Read = Callable[[Snapshot], Values]


@dataclass(frozen=True)
class Metric:
    """One metric, and how to read its values from a snapshot."""

    name: str
    """As passed to Ray; see ``exposed``."""
    kind: Literal["counter", "gauge"]
    """Counters start at 0 with each driver; Prometheus treats that as a restart, which it is."""
    description: str
    read: Read
    labels: tuple[str, ...] = ()
    """Besides JOB_LABELS."""

    @property
    def exposed(self) -> str:
        """The name in Prometheus: Ray prepends ``ray_``, and appends ``_total`` to counters."""
        return f"ray_{self.name}_total" if self.kind == "counter" else f"ray_{self.name}"


def _one(value: float | None) -> Values:
    return {(): value}


def _by(counts: Mapping[Any, float]) -> Values:
    return {(key,): value for key, value in counts.items()}


def _run(name: str) -> Read:
    """Read a number of the run's account."""
    return lambda snapshot: _one(getattr(snapshot.run, name))


def _run_by(name: str, keys: Iterable[str] = STAGES) -> Read:
    """Read what the run's account holds for each of ``keys``."""
    return lambda snapshot: {(key,): getattr(snapshot.run, name).get(key, 0) for key in keys}


def _stage_seconds(snapshot: Snapshot) -> Values:
    return {
        (stage, activity): snapshot.run.spent_s.get(activity, 0.0)
        for stage in STAGES
        for activity in OF_STAGE[stage]
    }


def _speed_of_light(snapshot: Snapshot) -> Values:
    speed = speed_of(snapshot.recent)
    return _one(None if speed is None else speed.share)


METRICS: tuple[Metric, ...] = (
    Metric(
        "tokpipe_plan_rows",
        "gauge",
        "Rows of the plan: clips, or sources that are cut into several clips.",
        lambda snapshot: _one(snapshot.num_rows),
    ),
    Metric(
        "tokpipe_plan_rows_done",
        "gauge",
        "Rows of which every clip is tokenized or rejected, by any run.",
        lambda snapshot: _one(snapshot.num_rows_done),
    ),
    Metric(
        "tokpipe_clips",
        "counter",
        "Clips that a stage has finished; for `write`, committed clips.",
        _run_by("clips"),
        ("stage",),
    ),
    Metric("tokpipe_frames", "counter", "Frames of committed clips.", _run("num_frames")),
    Metric("tokpipe_codes", "counter", "Codes of committed clips.", _run("num_codes")),
    Metric(
        "tokpipe_source_bytes",
        "counter",
        "Bytes of source videos that decoders fetched, or found on local disk.",
        _run("download_bytes"),
    ),
    Metric(
        "tokpipe_written_bytes",
        "counter",
        "Bytes of committed shards and their side tables.",
        _run("written_bytes"),
    ),
    Metric("tokpipe_shards", "counter", "Committed shards.", _run("num_shards")),
    Metric("tokpipe_commits", "counter", "Commits to the manifest.", _run("num_commits")),
    Metric(
        "tokpipe_rejected_clips",
        "counter",
        "Clips whose rejection is committed.",
        lambda snapshot: _by(snapshot.run.rejected),
        ("reason",),
    ),
    Metric(
        "tokpipe_retried_clips",
        "counter",
        "Retries of single clips, after the clip failed or a worker that held only it was lost.",
        _run_by("retried"),
        ("stage",),
    ),
    Metric(
        "tokpipe_stage_seconds",
        "counter",
        "Seconds of actors by activity: download, decode, transfer (an encoder had a lease but no "
        "pixels yet), encode, write.",
        _stage_seconds,
        ("stage", "activity"),
    ),
    Metric(
        "tokpipe_actor_seconds",
        "counter",
        "Seconds that actors were up, busy or not.",
        _run_by("up_s"),
        ("stage",),
    ),
    Metric(
        "tokpipe_actors",
        "gauge",
        "Actors that take leases.",
        lambda snapshot: _by(snapshot.actors),
        ("stage",),
    ),
    Metric(
        "tokpipe_busy_ratio",
        "gauge",
        "Fraction of the last minute in which a stage's actors were busy, 0 to 1.",
        lambda snapshot: _by(busy_shares(snapshot.recent)),
        ("stage",),
    ),
    Metric(
        "tokpipe_speed_of_light_ratio",
        "gauge",
        "Fraction of the last minute in which encoders computed, 0 to 1: how close the job is to "
        "the speed of its encoders alone.",
        _speed_of_light,
    ),
    Metric(
        "tokpipe_goodput_ratio",
        "gauge",
        "Fraction of this run's encoder time that produced committed codes, 0 to 1.",
        _run("goodput"),
    ),
    Metric(
        "tokpipe_lost_actors",
        "counter",
        "Actors that were up and died, or were killed at a deadline.",
        _run_by("lost_actors"),
        ("stage",),
    ),
    Metric(
        "tokpipe_lost_nodes",
        "counter",
        "Nodes that were lost with actors on them.",
        _run("num_lost_nodes"),
    ),
)


class Changes:
    """Turns snapshots into updates of metrics. Pure: ``JobMetrics`` passes them to Ray."""

    def __init__(self) -> None:
        self._sent: dict[tuple[str, Labels], float] = {}
        """Present values of counters."""
        self._reasons: set[str] = set()

    def of(self, snapshot: Snapshot) -> Iterator[tuple[Metric, Labels, float]]:
        """Yield the values of gauges, and what to add to counters if anything.

        Work that has to be repeated is taken off the counts of a run, but counters cannot fall:
        they wait until the work is done again.
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
                elif value > (sent := self._sent.get((metric.name, labels), 0.0)):
                    self._sent[metric.name, labels] = value
                    yield metric, labels, value - sent

    def _bounded(self, values: Values) -> Values:
        """Merge reasons beyond MAX_REASONS into one."""
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
    """Passes snapshots of one run to Ray. Where Ray exports no metrics, this has no effect."""

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
