"""The metrics of a run: counters only grow, and labels are few."""

import re
from pathlib import Path
from typing import get_args

from tokpipe.runtime.metrics import JOB_LABELS, METRICS, Metric, Sent, changes
from tokpipe.runtime.snapshot import Snapshot
from tokpipe.telemetry.account import Account
from tokpipe.telemetry.logs import EventName
from tokpipe.types import STAGES

PAGE = Path(__file__).parents[2] / "docs/monitoring.md"


def exposed(metric: Metric) -> str:
    """The name in Prometheus."""
    return f"ray_{metric.name}{'_total' if metric.kind == 'counter' else ''}"


def snapshot(run: Account | None = None) -> Snapshot:
    none = dict.fromkeys(STAGES, 0)
    return Snapshot(
        total=0, expected=0, passed=none, actors=none, rejected={}, run=run or Account()
    )


def test_names_follow_the_conventions_of_prometheus() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert re.fullmatch(r"tokpipe_[a-z]+(_[a-z]+)*", metric.name)
        assert not metric.name.endswith("_total"), "Ray adds it"
        assert metric.description.endswith(".")
        assert not set(metric.labels) & set(JOB_LABELS)
        for labels in metric.values(snapshot()):
            assert len(labels) == len(metric.labels)


def raised(*snapshots: Snapshot) -> dict[tuple[str, ...], float]:
    """Counters after these snapshots: (name, *labels) -> value."""
    sent: Sent = {}
    counts: dict[tuple[str, ...], float] = {}
    for one in snapshots:
        for metric, labels, value in changes(one, sent):
            if metric.kind == "counter":
                assert value > 0, "Ray rejects increments of 0"
                key = (metric.name, *labels)
                counts[key] = counts.get(key, 0.0) + value
    return counts


def test_counters_wait_while_lost_work_is_done_again() -> None:
    counts = raised(
        *(
            snapshot(Account(clips={"decode": decoded, "encode": 0, "write": 0}))
            for decoded in (3, 8, 5, 7, 9)
        )
    )
    assert counts == {("tokpipe_clips", "decode"): 9}


def test_busy_ratios_match_the_progress_line() -> None:
    (busy,) = (metric for metric in METRICS if metric.name == "tokpipe_busy_ratio")
    (light,) = (metric for metric in METRICS if metric.name == "tokpipe_speed_of_light_ratio")
    up: dict[str, float] = dict.fromkeys(STAGES, 10.0)
    recent = Account({"download": 2.0, "decode": 3.0, "encode": 9.0, "transfer": 4.0}, up)
    seen = Snapshot(total=0, expected=0, passed={}, actors={}, rejected={}, recent=recent)
    assert busy.values(seen) == {("decode",): 0.5, ("encode",): 1.0, ("write",): 0.0}
    assert light.values(seen) == {(): 0.9}


def test_the_monitoring_page_lists_every_metric_and_event() -> None:
    page = PAGE.read_text()
    metrics = [
        f"| `{exposed(one)}` | {one.kind} | {', '.join(f'`{key}`' for key in one.labels)} | "
        f"{one.description} |"
        for one in METRICS
    ]
    table = "\n".join([*metrics, ""])
    assert table in page, f"docs/monitoring.md should have these rows:\n{table}"
    _, _, events = page.partition("| event | |\n|---|---|\n")
    rows = events.partition("\n\n")[0].splitlines()
    explained = [re.fullmatch(r"\| `(\w+)` \| \S.+\. \|", row) for row in rows]
    assert [row and row[1] for row in explained] == list(get_args(EventName))
