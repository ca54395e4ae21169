"""The decode benchmark runs; its figures are not judged here."""

import os

from benchmarks.decode import run
from benchmarks.figures import Figure, Skipped


def test_a_quick_run_yields_a_figure_for_each_decoder_or_the_reason_why_not() -> None:
    cores = os.sched_getaffinity(0)
    results = list(run(quick=True))
    assert os.sched_getaffinity(0) == cores
    if results[0].name == "decode":
        assert isinstance(results[0], Skipped)  # without ffmpeg there is nothing to compare with
        return
    figures = {result.name: result for result in results if isinstance(result, Figure)}
    for way in ("every frame", "every third", "the last second"):
        for backend in ("pyav", "decord"):
            figure = figures[f"h264 240p, {way}, {backend} against ffmpeg"]
            assert figure.value > 0
            assert figure.details["decoded by"] == backend
    assert [name for name in figures if figures[name].target is not None] == [results[-1].name]
