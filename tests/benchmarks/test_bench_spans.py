"""The benchmark of spans runs; its figures are not judged here."""

import os

from benchmarks.figures import Figure, Skipped
from benchmarks.spans import run


def test_a_quick_run_yields_a_figure_for_each_rate_and_for_spans() -> None:
    cores = os.sched_getaffinity(0)
    results = list(run(quick=True))
    assert os.sched_getaffinity(0) == cores
    if isinstance(results[0], Skipped):  # without ffmpeg there is nothing to compare with
        assert len(results) == 1
        return
    figures = [result for result in results if isinstance(result, Figure)]
    assert [figure.target for figure in figures] == [1.5, 1.2, 1.2]
    assert all(figure.value > 0 for figure in figures)
