"""Metrics of a job for Prometheus, exported through the endpoint that Ray runs on every node.

They are read in the driver, twice a second, from the snapshot that progress lines show: nothing is
counted twice, and no clip costs anything.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from ray.util.metrics import Counter, Gauge

from tokpipe.runtime.snapshot import Snapshot
from tokpipe.telemetry.account import OF_STAGE
from tokpipe.telemetry.redact import printable
from tokpipe.types import STAGES

JOB_LABELS = ("dataset", "plan_id")
"""Labels of every metric. ``plan_id`` is its first 12 digits, as in shard names."""

Labels = tuple[str, ...]  # Values of a metric's labels besides JOB_LABELS, in order
Kind = Literal["counter", "gauge"]


class Metric(NamedTuple):
    """One metric, and how to read it from a snapshot: one value, or values by label."""

    name: str  # As passed to Ray; see ``exposed``
    kind: Kind  # Counters start at 0 with each driver, which is a restart for Prometheus too
    description: str
    read: Callable[[Snapshot], float | Mapping[Any, float] | None]
    labels: tuple[str, ...] = ()  # Besides JOB_LABELS

    @property
    def exposed(self) -> str:
        """The name in Prometheus: Ray prepends ``ray_``, and appends ``_total`` to counters."""
        return f"ray_{self.name}_total" if self.kind == "counter" else f"ray_{self.name}"

    def values(self, snapshot: Snapshot) -> dict[Labels, float]:
        """Values by labels. Empty while there is nothing to measure."""
        value = self.read(snapshot)
        if isinstance(value, Mapping):
            return {key if isinstance(key, tuple) else (key,): one for key, one in value.items()}
        return {} if value is None else {(): value}


def _gauge(name: str, description: str, read: Callable[[Snapshot], Any], *labels: str) -> Metric:
    return Metric(f"tokpipe_{name}", "gauge", description, read, labels)


def _counter(name: str, description: str, field: str, *labels: str) -> Metric:
    """A counter of a field of the run's account; by stage, it starts with 0 for each."""

    def read(now: Snapshot) -> Any:
        value = getattr(now.run, field)
        return {stage: value.get(stage, 0) for stage in STAGES} if "stage" in labels else value

    return Metric(f"tokpipe_{name}", "counter", description, read, labels)


def _stage_seconds(snapshot: Snapshot) -> Mapping[Labels, float]:
    spent_s = snapshot.run.spent_s
    return {(stage, of): spent_s.get(of, 0.0) for stage in STAGES for of in OF_STAGE[stage]}


METRICS: tuple[Metric, ...] = (
    _gauge(
        "plan_rows",
        "Rows of the plan: clips, or sources that are cut into several clips.",
        lambda now: now.num_rows,
    ),
    _gauge(
        "plan_rows_done",
        "Rows of which every clip is tokenized or rejected, by any run.",
        lambda now: now.num_rows_done,
    ),
    _counter(
        "clips", "Clips that a stage has finished; for `write`, committed clips.", "clips", "stage"
    ),
    _counter("frames", "Frames of committed clips.", "num_frames"),
    _counter("codes", "Codes of committed clips.", "num_codes"),
    _counter(
        "source_bytes",
        "Bytes of source videos that decoders fetched, or found on local disk.",
        "download_bytes",
    ),
    _counter("written_bytes", "Bytes of committed shards and their side tables.", "written_bytes"),
    _counter("rejected_clips", "Clips whose rejection is committed.", "rejected", "reason"),
    Metric(
        "tokpipe_stage_seconds",
        "counter",
        "Seconds of actors by activity: download, decode, transfer (an encoder had a lease but no "
        "pixels yet), encode, write.",
        _stage_seconds,
        ("stage", "activity"),
    ),
    _counter("actor_seconds", "Seconds that actors were up, busy or not.", "up_s", "stage"),
    _gauge("actors", "Actors that take leases.", lambda now: now.actors, "stage"),
    _gauge(
        "encoder_paths",
        "Encoders on GPUs, by how they compute: with `norms` other than `triton`, it is slower.",
        lambda now: now.paths,
        *("dtype", "norms", "graphs", "batch_chunks", "cudnn"),
    ),
    _gauge(
        "busy_ratio",
        "Fraction of the last minute in which a stage's actors were busy, 0 to 1.",
        lambda now: now.recent.busy_shares,
        "stage",
    ),
    _gauge(
        "speed_of_light_ratio",
        "Fraction of the last minute in which encoders computed, 0 to 1: how close the job is to "
        "the speed of its encoders alone.",
        lambda now: (speed := now.recent.speed) and speed.share,
    ),
    _gauge(
        "goodput_ratio",
        "Fraction of this run's encoder time that produced committed codes, 0 to 1.",
        lambda now: now.run.goodput,
    ),
    _counter(
        "lost_actors",
        "Actors that were up and died, or were killed at a deadline.",
        "lost_actors",
        "stage",
    ),
)


Sent = dict[tuple[str, Labels], float]  # Current values of counters


def changes(snapshot: Snapshot, sent: Sent) -> Iterator[tuple[Metric, Labels, float]]:
    """Yield the values of gauges, and what to add to counters if anything.

    Work that has to be repeated is subtracted from the counts of a run, but counters cannot
    fall: they wait until the work is done again.
    """
    for metric in METRICS:
        for labels, value in metric.values(snapshot).items():
            if metric.kind == "gauge":
                yield metric, labels, value
            elif value > (before := sent.get((metric.name, labels), 0.0)):
                sent[metric.name, labels] = value
                yield metric, labels, value - before


class JobMetrics:
    """Passes snapshots of one run to Ray. Where Ray exports no metrics, this has no effect."""

    def __init__(self, dataset: str, plan_id: str) -> None:
        job = {"dataset": printable(dataset), "plan_id": plan_id[:12]}
        self._sent: Sent = {}
        self._series: dict[str, Counter | Gauge] = {}
        for metric in METRICS:
            make = Counter if metric.kind == "counter" else Gauge
            keys = (*JOB_LABELS, *metric.labels)
            series = make(metric.name, metric.description, keys).set_default_tags(job)
            self._series[metric.name] = series

    def show(self, snapshot: Snapshot) -> None:
        for metric, labels, value in changes(snapshot, self._sent):
            values, series = map(printable, labels), self._series[metric.name]
            tags = dict(zip(metric.labels, values, strict=True))
            if isinstance(series, Gauge):
                series.set(value, tags)
            else:
                series.inc(value, tags)
