"""Inserts the results of benchmarks into their page::

python -m benchmarks.page benchmarks/results docs/performance.md
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.command import BENCHMARKS
from benchmarks.figures import Figure, number_text
from benchmarks.gpu.record import summary_of

MARK = "<!-- {}: {} -->"
BEGIN, END = MARK.format("results", "begin"), MARK.format("results", "end")


def results_text(folder: Path) -> str:
    """A table of the results that ``--json FOLDER`` wrote, by machine and benchmark."""
    machines: dict[str, list[dict[str, Any]]] = {}
    for name in BENCHMARKS:
        if (path := folder / f"{name}.json").exists():
            record = json.loads(path.read_text())
            machines.setdefault(_machine(record["machine"]), []).append(record)
    lines: list[str] = []
    for machine, measured in machines.items():
        lines += [
            machine,
            "",
            "| benchmark | figure | measured | target | |",
            "|---|---|---|---|---|",
        ]
        lines += [row for record in measured for row in _rows(record)]
        lines.append("")
    return "\n".join(lines)


def with_results(page: str, results: str, name: str = "results") -> str:
    """The page with these results between its marks; raises ValueError if it has none."""
    first, last = (MARK.format(name, which) for which in ("begin", "end"))
    before, begin, rest = page.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise ValueError(f"the page has no place for {name}, between {first} and {last}")
    return f"{before}{first}\n{results}{last}{after}"


def _machine(machine: dict[str, Any]) -> str:
    flags = ", ".join(machine["cpu_flags"])
    libraries = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
    return (
        f"{machine['date']}: {machine['cpu']} ({flags}), {machine['cores']} cores, "
        f"{machine['memory_gb']} GB, {machine['gpu'] or 'no GPU'}; Python {machine['python']}, "
        f"{libraries}."
    )


def _rows(record: dict[str, Any]) -> Iterator[str]:
    name = record["benchmark"] + (" (quick)" if record["quick"] else "")
    for result in record["results"]:
        if "skipped" in result:
            yield f"| {name} | {result['name']} | not measured: {result['skipped']} | | |"
            continue
        result.pop("passed")
        figure = Figure(**result)
        value, target = f"{number_text(figure.value)} {figure.unit}", ""
        if figure.target is not None:
            sign = "≥" if figure.better == "higher" else "≤"
            target = f"{sign} {number_text(figure.target)}"
        verdict = {True: "reached", False: "**not reached**", None: ""}[figure.passed]
        if figure.passed is False and (limit := figure.details.get("limit")):
            verdict += f"; the limit of this machine is {number_text(float(limit))}"
        yield f"| {name} | {figure.name} | {value} | {target} | {verdict} |"


if __name__ == "__main__":
    folder, page = map(Path, sys.argv[1:])
    page.write_text(with_results(page.read_text(), results_text(folder)))
    if (gpu := folder / "gpu.json").exists():
        text = summary_of(json.loads(gpu.read_text()))
        page.write_text(with_results(page.read_text(), text, "gpu"))
