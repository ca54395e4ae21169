"""Metrics of a job for Prometheus, exported through the endpoint that Ray runs on every node.

The driver reads them twice a second from the snapshot of progress lines, so a clip costs nothing.
"""

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ray.util.metrics import Counter, Gauge

from tokpipe.runtime.snapshot import Snapshot
from tokpipe.telemetry.redact import printable
from tokpipe.types import STAGES

JOB_LABELS = ("dataset", "plan_id")  # Of every metric; the first 12 digits of the id
Labels = tuple[str, ...]  # A metric's labels besides JOB_LABELS, or their values, in order


class Metric(NamedTuple):
    """One metric, and where a snapshot has its value: one, or values by label."""

    name: str  # In Prometheus after ``ray_``, and before ``_total`` of a counter, both from Ray
    kind: Literal["counter", "gauge"]
    description: str
    value: str
    labels: Labels = ()

    def values(self, snapshot: Snapshot) -> dict[Labels, float]:
        """Values by labels. Empty while there is nothing to measure."""
        value: Any = snapshot
        for name in self.value.split("."):
            value = None if value is None else getattr(value, name)
        if self.kind == "counter" and self.labels == ("stage",):  # from 0 for each
            value = {stage: value.get(stage, 0) for stage in STAGES}
        if isinstance(value, Mapping):
            return {key if isinstance(key, tuple) else (key,): one for key, one in value.items()}
        return {} if value is None else {(): value}


METRICS = tuple(
    Metric(**{**one, "name": f"tokpipe_{one['name']}", "labels": tuple(one.get("labels", ()))})
    for one in tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))["metrics"]
)

Sent = dict[tuple[str, Labels], float]  # Current values of counters


def changes(snapshot: Snapshot, sent: Sent) -> Iterator[tuple[Metric, Labels, float]]:
    """Yield the values of gauges, and what to add to counters, if anything: these cannot fall, so
    when work is subtracted, because it must be repeated, they wait until it is redone."""
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
        for name, kind, description, _, labels in METRICS:
            make = Counter if kind == "counter" else Gauge
            series = make(name, description, (*JOB_LABELS, *labels)).set_default_tags(job)
            self._series[name] = series

    def show(self, snapshot: Snapshot) -> None:
        for metric, labels, value in changes(snapshot, self._sent):
            values, series = map(printable, labels), self._series[metric.name]
            tags = dict(zip(metric.labels, values, strict=True))
            if isinstance(series, Gauge):
                series.set(value, tags)
            else:
                series.inc(value, tags)
