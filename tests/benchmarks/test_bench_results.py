"""How figures become lines, JSON and a page."""

import json
from pathlib import Path

import pytest

from benchmarks import command
from benchmarks.command import BENCHMARKS, run_benchmarks
from benchmarks.figures import Figure, Result, Skipped
from benchmarks.page import BEGIN, END, results_text, with_results
from tokpipe.errors import ConfigError

GOOD = Figure("codes per second", 12_345.6, "codes/s", target=10_000)
BAD = Figure("bits per code", 13.5, "bits", target=13.39, better="lower", details={"k": 8192})
LIMITED = Figure("codes of a slow card", 8.0, "codes/s", target=10, details={"limit": 9.0})
FREE = Figure("share that agrees", 0.99991, "of them", remark="on one clip")
LEFT_OUT = Skipped("on a GPU", "there is none")


@pytest.fixture
def benchmark_of(monkeypatch: pytest.MonkeyPatch) -> list[Result]:
    """The results of the benchmark that is run."""
    results: list[Result] = []
    monkeypatch.setattr(command, "load", lambda _: lambda _quick: iter(results))
    return results


def test_lines_say_value_target_and_verdict() -> None:
    assert GOOD.line() == "codes per second: 12,346 codes/s, target >= 10,000 codes/s, pass"
    assert BAD.line() == "bits per code: 13.5 bits, target <= 13.39 bits, NOT REACHED  [k 8192]"
    assert FREE.line() == "share that agrees: 0.9999 of them  (on one clip)"
    assert LEFT_OUT.line() == "on a GPU: not measured, there is none"
    assert (GOOD.passed, BAD.passed, FREE.passed) == (True, False, None)


@pytest.mark.parametrize(
    ("results", "passed"), [([GOOD, FREE, LEFT_OUT], True), ([GOOD, BAD], False)]
)
def test_results_are_printed_and_stored(
    results: list[Result], passed: bool, benchmark_of: list[Result], tmp_path: Path
) -> None:
    benchmark_of += results
    said: list[str] = []
    found = run_benchmarks(["storage"], quick=True, folder=tmp_path / "results", say=said.append)
    assert found is passed
    assert said == [
        f"storage: {BENCHMARKS['storage']}",
        *(f"  {one.line()}" for one in results),
    ]
    kept = json.loads((tmp_path / "results/storage.json").read_text())
    assert kept["quick"]
    assert kept["machine"]["libraries"]["torch"]
    assert [one.get("value") for one in kept["results"]] == [
        one.value if isinstance(one, Figure) else None for one in results
    ]


def test_an_unknown_benchmark_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no benchmark sped\. Choose from: encoder, decode"):
        run_benchmarks(["sped"], quick=True, folder=None, say=print)


def test_the_page_shows_stored_results(benchmark_of: list[Result], tmp_path: Path) -> None:
    benchmark_of += [GOOD, BAD, LIMITED, FREE, LEFT_OUT]
    run_benchmarks(["reader"], quick=False, folder=tmp_path, say=lambda _: None)
    page = with_results(f"before\n{BEGIN}\nold\n{END}\nafter\n", results_text(tmp_path))
    assert page.startswith(f"before\n{BEGIN}\n")
    assert page.endswith(f"{END}\nafter\n")
    assert "old" not in page
    assert "| reader | codes per second | 12,346 codes/s | ≥ 10,000 | reached |" in page
    assert "| reader | bits per code | 13.5 bits | ≤ 13.39 | **not reached** |" in page
    assert "| ≥ 10 | **not reached**; the limit of this machine is 9 |" in page
    assert "| reader | on a GPU | not measured: there is none | | |" in page
    assert with_results(page, results_text(tmp_path)) == page


def test_a_page_without_marks_is_rejected() -> None:
    with pytest.raises(ValueError, match="no place for results"):
        with_results("words", "results")
