"""The program for GPUs: its sections run on a CPU, and whatever ends it loses nothing."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import __main__ as program
from benchmarks.gpu.record import DRY, UNKNOWN, Part, Record, page_of, summary_of
from benchmarks.gpu.sections import SECTIONS, TOTAL_S, Section
from benchmarks.gpu.timeline import Kernel, gaps, hidden_copies
from tests.pages import REPOSITORY

NOT_NEEDED = ("ray", "pyarrow", "av", "decord", "fsspec", "s3fs", "rich", "yaml")
FIGURES = ("GB", "/s", "ms", "share of")
"""Parts of the names of columns with figures of a GPU."""


@pytest.mark.parametrize(
    "missing",
    [
        pytest.param(NOT_NEEDED[:-1], id="with pydantic and Triton"),
        pytest.param(
            (*NOT_NEEDED, "pydantic", "safetensors", "triton"), marks=pytest.mark.slow, id="without"
        ),
    ],
)
def test_a_dry_run_has_every_section_and_no_figures(
    missing: tuple[str, ...], tmp_path: Path
) -> None:
    for name in missing:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('no {name} here')\n")
    found, page = tmp_path / "found.json", tmp_path / "found.md"
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu", "--dry-run"]
    done = subprocess.run(
        [*command, "--json", str(found), "--page", str(page)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    record = json.loads(found.read_text())
    assert page.read_text() == page_of(record)
    assert DRY in page.read_text()
    assert [part["name"] for part in record["sections"]] == [one.name for one in SECTIONS]
    left: dict[str, str] = {}
    for part in record["sections"]:
        assert part["state"] == "done", part
        assert f"## {part['title']}\n" in page.read_text()
        assert part["rows"] or part["left"], part["name"]
        assert all(claim["holds"] is None for claim in part["claims"]), part["name"]
        for name, value in (cell for row in part["rows"] for cell in row["cells"].items()):
            is_figure = any(one in name for one in FIGURES)
            assert not (is_figure and isinstance(value, float)), (part["name"], name, value)
        left |= dict.fromkeys([part["name"]] * len(part["left"]), str(part["left"]))
    with pytest.raises(ValueError, match="dry run"):
        summary_of(record)
    if "pydantic" in missing:
        assert "no triton here" in left.pop("norm")
        assert {"codes", "encoder", "stage", "pressure"} == left.keys()
    else:
        needed = {"norm": "triton", "encoder": "tokpipe.models.memory"}
        assert left.keys() == {key for key, name in needed.items() if not find_spec(name)}


def test_sections_fit_into_eight_minutes() -> None:
    assert sum(one.budget_s for one in SECTIONS) <= TOTAL_S < 8 * 60


CHILD = """
import json, sys, time
order = json.loads(sys.argv[1])
def say(*message):
    print(json.dumps(message), flush=True)
for name in order["sections"]:
    say("begin", name)
    say("Row", {"cells": {"values": str(sorted(order["values"]))}, "table": ""})
    say("value", {name: 1.0})
    if name == "hangs":
        time.sleep(3600)
    if name == "dies":
        print("not a message")
        print("lost the device", file=sys.stderr)
        sys.exit(3)
    say("Claim", {"text": "it holds", "holds": True, "found": ""})
    say("end", {"state": "done", "seconds": 1.5})
"""


def run(names: Sequence[str], monkeypatch: pytest.MonkeyPatch, child: str = CHILD) -> list[Record]:
    """Every record that was written while sections with these names ran."""
    monkeypatch.setattr(program, "GRACE_S", 0.0)
    budgets = {"hangs": 1.5}  # time enough for its finding
    sections = [Section(name, name.title(), budgets.get(name, 100.0), name) for name in names]
    written: list[dict[str, Any]] = []
    runner = program.Runner(
        sections,
        is_dry=False,
        write=lambda record: written.append(json.loads(json.dumps(record.to_json()))),
        command=[sys.executable, "-c", child],
    )
    runner.run()
    parts = [[Part(**part) for part in one["sections"]] for one in written]
    return [Record(False, one) for one in parts]


def test_a_section_that_hangs_or_dies_costs_only_what_it_had_not_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    records = run(["first", "hangs", "dies", "last"], monkeypatch)
    first, hung, died, last = records[-1].parts
    assert (first.state, last.state, first.seconds) == ("done", "done", 1.5)
    assert "was ended" in hung.state
    assert died.state.startswith("its process ended with 3:")
    assert "lost the device" in died.state
    rows = [part.rows[0]["cells"]["values"] for part in records[-1].parts]
    assert rows == ["[]", "[]", "['first', 'hangs']", "['dies', 'first', 'hangs']"], (
        "what earlier sections measured"
    )
    found = [sum(len(part.rows) + len(part.claims) for part in one.parts) for one in records]
    assert found == sorted(found), "nothing is lost"
    assert {*range(found[-1] + 1)} == {*found}, "each finding was written as it came"


def test_a_process_that_cannot_start_is_not_tried_for_every_section(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    records = run(["first", "last"], monkeypatch, "import sys; sys.exit('no CUDA device')")
    for part in records[-1].parts:
        assert part.state == "its process ended with 1: no CUDA device"


def test_the_page_answers_first_and_the_summary_names_the_machine() -> None:
    versions = Part("versions", "Versions", "done", 2.0)
    versions.add("Row", {"cells": {"what": "GPU", "found": "A | B"}, "table": ""})
    for holds in (True, False, None):
        versions.add("Claim", {"text": f"claim {holds}", "holds": holds, "found": "x\ny"})
    norm = Part("norm", "Norms", "failed: it broke")
    norm.add("Left", {"what": "a shape", "why": "no room"})
    norm.add("Row", {"cells": {"shape": "big", "GB/s": None}, "table": "More"})
    record = Record(False, [versions, norm]).to_json()
    page, summary = page_of(record), summary_of(record)
    for text in (page, summary):
        assert "| versions | claim True | yes | x y |" in text
        assert "| versions | claim False | **no** | x y |" in text
        assert f"| versions | claim None | {UNKNOWN} | x y |" in text
        assert f"| norm | the whole section | {UNKNOWN} | failed: it broke |" in text
    assert summary.startswith("GPU A \\| B.\n")
    assert page.index("claim True") < page.index("## Versions") < page.index("### More")
    assert f"- a shape: {UNKNOWN}, no room" in page
    assert f"| big | {UNKNOWN} |" in page
    assert DRY not in page


def test_gaps_are_times_without_a_kernel_and_copies_are_no_kernels() -> None:
    times = (("a", 0, 10), ("Memcpy HtoD", 5, 25), ("b", 8, 12), ("inside", 9, 10))
    kernels = [Kernel(*one) for one in (*times, ("c", 20, 30), ("d", 31, 32))]
    assert gaps(kernels) == (12 + 10 + 1, 8 + 1, [(8, "b", "c"), (1, "c", "d")])
    assert hidden_copies(kernels) == pytest.approx((12 - 5 + 25 - 20) / 20)
    assert hidden_copies(kernels[:1]) is None
