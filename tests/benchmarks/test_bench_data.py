"""The data benchmarks run on small data and yield well-formed figures."""

import json

import pytest

from benchmarks.command import BENCHMARKS, load
from benchmarks.figures import Figure
from benchmarks.processes import measured

DATA = {"plan": 2, "resume": 4, "extend": 3, "audit": 2, "storage": 3, "reader": 4}


@pytest.mark.parametrize("name", DATA)
def test_a_quick_run_yields_every_figure(name: str) -> None:
    results = list(load(name)(True))
    figures = [result for result in results if isinstance(result, Figure)]
    assert len(results) == len(figures) == DATA[name]
    assert len({figure.name for figure in figures}) == len(figures)
    for figure in figures:
        assert figure.value > 0
        assert name in BENCHMARKS
        assert figure.line().startswith(figure.name)
        assert json.loads(json.dumps(figure.to_json()))["value"] == figure.value


def _take(num_bytes: int) -> int:
    return len(b"x" * num_bytes)


def test_memory_is_measured_for_the_function_alone() -> None:
    held = b"x" * 500_000_000
    small, large = measured(_take, 1), measured(_take, 300_000_000)
    assert (small.result, large.result) == (1, 300_000_000)
    assert small.peak_gb < 0.4 < len(held) / 1e9
    assert 0.29 < large.peak_gb - large.before_gb < 0.4
