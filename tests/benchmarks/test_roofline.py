"""The predicted times of the encoder on GPUs: by whose rules, and that the page has them."""

from collections.abc import Iterable

import pytest

from benchmarks.page import with_results
from benchmarks.roofline import H100, H200, KINDS, LEVELS, PAST, Pass, main, milliseconds, passes
from tests.pages import REPOSITORY

BY_HAND = {
    "0": (4.01, 5.17, 1.06, 0.66, 0.33, 0.83),
    "1": (1.86, 2.40, 0.24, 0.18, 0.09, 0.22),
    "2": (1.05, 1.36, 0.07, 0.05, 0.02, 0.06),
    "3 and middle": (0.58, 0.74, 0.05, 0.02, 0.00, 0.02),
}
"""TFLOP, and ms of each kind but the copies of past frames on an H200, counted by hand, with
convolutions by their operations alone."""


def of(found: Iterable[Pass], level: str, kind: str) -> float:
    return milliseconds([one for one in found if (one.level, one.kind) == (level, kind)], H200)


def test_the_former_design_takes_what_was_counted_by_hand() -> None:
    found = passes(former=True)
    for level, (tera, *times) in BY_HAND.items():
        flops = sum(one.flops for one in found if one.level == level) / 1e12
        assert flops == pytest.approx(tera, abs=0.01), level
        for kind, wanted in zip((one for one in KINDS if one != PAST), times, strict=True):
            assert of(found, level, kind) == pytest.approx(wanted, rel=0.05, abs=0.011), kind
    assert milliseconds(found, H200) == pytest.approx(13.6, rel=0.02)


def test_biases_and_sums_take_less_nothing_takes_more_and_a_batch_costs_its_clips() -> None:
    former, ours = passes(former=True), passes()
    for level in LEVELS:
        for kind in KINDS:
            saved = of(former, level, kind) - of(ours, level, kind)
            is_less = kind in ("bias", "norm + SiLU")
            assert (saved > 0.005) if is_less else saved > -1e-5, (level, kind)
    assert milliseconds(ours, H100) > milliseconds(ours, H200)
    assert milliseconds(passes(batch=4), H200) == pytest.approx(4 * milliseconds(ours, H200))


def test_a_pass_takes_as_long_as_the_slower_of_computing_and_moving() -> None:
    computes = Pass("0", "convolutions", 1, flops=int(788e9), is_bf16=True)
    moves = Pass("0", "convolutions", int(8.6e9), flops=1, is_bf16=True)
    assert milliseconds([computes, moves], H200) == pytest.approx(1 + 2)
    assert milliseconds([computes, moves], H200, 0.5, 0.25) == pytest.approx(2 + 8)


def test_the_page_has_the_tables_that_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    page = (REPOSITORY / "docs/performance.md").read_text()
    assert with_results(page, capsys.readouterr().out, "roofline") == page, (
        "run: python -m benchmarks.roofline docs/performance.md"
    )
