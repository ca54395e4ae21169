"""The runtime and pipeline benchmarks run; their figures are not judged here."""

import math

import pytest

from benchmarks.command import load
from benchmarks.figures import Figure
from benchmarks.requests import requests_of


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("name", ["control", "pipeline", "peers", "startup"])
def test_quick_forms_yield_figures(name: str) -> None:
    results = list(load(name)(True))
    figures = [result for result in results if isinstance(result, Figure)]
    assert figures
    for figure in figures:
        assert math.isfinite(figure.value), figure.line()
        assert figure.value >= 0, figure.line()
        if "torchcodec" not in figure.name:  # which scales differently
            assert float(figure.details.get("equal_codes", 1.0)) > 0.999, figure.line()


def test_a_source_costs_three_requests_and_a_shard_three() -> None:
    parts = requests_of(2)
    # The store in memory, like those of Google and Azure, is asked for the version after a read;
    # answers of S3 and web servers name it.
    assert (parts["source"], parts["shard"], parts["commit"]) == (3, 2, 1)
