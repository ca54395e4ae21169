"""The benchmarks of runtime and pipeline run; what they measure is for a quiet machine to say."""

from __future__ import annotations

import math

import pytest

from benchmarks.command import load
from benchmarks.figures import Figure


@pytest.mark.ray
@pytest.mark.parametrize("name", ["control", "pipeline", "peers"])
def test_quick_forms_give_figures(name: str) -> None:
    results = list(load(name)(True))
    figures = [result for result in results if isinstance(result, Figure)]
    assert figures
    for figure in figures:
        assert math.isfinite(figure.value), figure.line()
        assert figure.value >= 0, figure.line()
        for script in ("loop_equal_codes", "ray_data_equal_codes"):
            assert float(figure.details.get(script, 1.0)) > 0.999, "the peers did another job"
