"""The dashboard queries every declared metric, by labels that exist, and nothing else."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.runtime.test_metrics import exposed
from tokpipe.runtime.metrics import JOB_LABELS, METRICS

ROOT = Path(__file__).parents[2]
DECLARED = {exposed(metric): metric for metric in METRICS}
QUERY = re.compile(r"(ray_tokpipe_\w+)(?:\{([^}]*)\})?")


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ROOT / "infra/grafana/tokpipe.json").read_text())
    return loaded


def targets(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in dashboard["panels"]:
        yield from panel["targets"]


def test_every_query_names_declared_metrics_and_their_labels(dashboard: dict[str, Any]) -> None:
    for target in targets(dashboard):
        names = re.findall(r"\b(\w*tokpipe\w*)", target["expr"])
        assert names
        assert set(names) <= DECLARED.keys(), target["expr"]
        for name, matchers in QUERY.findall(target["expr"]):
            allowed = {*JOB_LABELS, *DECLARED[name].labels}
            asked = dict(re.findall(r'(\w+)=~?"([^"]*)"', matchers))
            assert asked.keys() <= allowed, target["expr"]
            assert (asked["dataset"], asked["plan_id"]) == ("$dataset", "$plan_id")
            shown = re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
            (grouped,) = re.findall(r"^\w+ by \((\w+)\)", target["expr"]) or [None]
            assert shown in ([], [grouped])
            assert grouped is None or grouped in allowed, target["expr"]


def test_every_declared_metric_is_shown(dashboard: dict[str, Any]) -> None:
    asked = {name for target in targets(dashboard) for name, _ in QUERY.findall(target["expr"])}
    assert asked == DECLARED.keys()


def test_rates_are_taken_of_counters_and_means_of_gauges(dashboard: dict[str, Any]) -> None:
    for target in targets(dashboard):
        for function, name in re.findall(r"(\w+)\((ray_tokpipe_\w+)", target["expr"]):
            if function in ("rate", "increase"):
                assert DECLARED[name].kind == "counter", target["expr"]
            if function in ("deriv", "avg", "max"):
                assert DECLARED[name].kind == "gauge", target["expr"]


def test_it_can_be_imported_beside_any_prometheus(dashboard: dict[str, Any]) -> None:
    variables = {one["name"]: one for one in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in dashboard["panels"]:
        assert panel["datasource"] == source
        assert panel["description"]
    assert all(target["datasource"] == source for target in targets(dashboard))
    for name in ("dataset", "plan_id"):
        assert variables[name]["datasource"] == source
        (metric,) = re.findall(r"ray_tokpipe_\w+", variables[name]["definition"])
        assert metric in DECLARED
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    assert dashboard["schemaVersion"] >= 38  # of Grafana 10


def test_panels_do_not_overlap(dashboard: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells


def test_prometheus_reads_the_file_that_ray_writes() -> None:
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    config = yaml.safe_load((ROOT / "infra/prometheus.yaml").read_text())
    (scraped,) = config["scrape_configs"]
    (found,) = scraped["file_sd_configs"]
    assert found["files"] == [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]
