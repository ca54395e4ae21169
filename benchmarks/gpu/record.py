"""What the sections find, as JSON and as a page. Imports nothing heavy."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.figures import number_text

Cell = str | float | int | bool | None
"""None was not measured."""

UNKNOWN = "not measured"
DRY = (
    "**A dry run on a CPU**, which shows that every section works. No figure or answer here is a "
    "GPU's."
)


@dataclass(frozen=True)
class Row:
    """One line of a section's table, by column. Rows of one ``table`` share their columns."""

    cells: Mapping[str, Cell]
    table: str = ""


@dataclass(frozen=True)
class Claim:
    """A statement about GPUs, whether it holds (None: not measured), and what was found."""

    text: str
    holds: bool | None
    found: str = ""


@dataclass(frozen=True)
class Left:
    """What was not measured, and why."""

    what: str
    why: str


Finding = Row | Claim | Left


@dataclass
class Part:
    """The findings of one section."""

    name: str
    title: str
    state: str = "not started"
    """``done``, or why it is not whole."""
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    claims: list[dict[str, Any]] = field(default_factory=list)
    left: list[dict[str, str]] = field(default_factory=list)

    def add(self, kind: str, value: dict[str, Any]) -> None:
        {"Row": self.rows, "Claim": self.claims, "Left": self.left}[kind].append(value)


@dataclass
class Record:
    """The findings of a run."""

    is_dry: bool
    parts: list[Part]

    def to_json(self) -> dict[str, Any]:
        return {
            "benchmark": "gpu",
            "dry_run": self.is_dry,
            "sections": [vars(p) for p in self.parts],
        }

    def write(self, json_path: Path | None, page_path: Path | None) -> None:
        """Replace both files, each at once: whatever ends the run, they are whole."""
        for path, text in (
            (json_path, json.dumps(self.to_json(), indent=1) + "\n"),
            (page_path, page_of(self.to_json())),
        ):
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                beside = path.with_name(path.name + ".part")
                beside.write_text(text)
                beside.replace(path)


def page_of(record: Mapping[str, Any]) -> str:
    """The record as a Markdown page: answers first, then the tables of each section."""
    lines = ["# tokpipe on a GPU", "", *_head(record), *answers_of(record)]
    for part in record["sections"]:
        lines += ["", f"## {part['title']}", ""]
        lines += [f"`{part['name']}`: {part['state']}, {part['seconds']:.0f} s.", ""]
        lines += [f"- {left['what']}: {UNKNOWN}, {left['why']}" for left in part["left"]]
        lines += _tables(part["rows"])
    return "\n".join(lines) + "\n"


def summary_of(record: Mapping[str, Any]) -> str:
    """The machine and the answers, for docs/performance.md."""
    if record["dry_run"]:
        raise ValueError("this is the record of a dry run on a CPU, which says nothing about a GPU")
    machine = [row for p in record["sections"] if p["name"] == "versions" for row in p["rows"]]
    found = ", ".join(f"{row['cells']['what']} {_text(row['cells']['found'])}" for row in machine)
    return "\n".join([f"{found}.", "", *answers_of(record)]) + "\n"


def answers_of(record: Mapping[str, Any]) -> list[str]:
    """The claims of all sections, as a table."""
    lines = ["| section | claim | holds | found |", "|---|---|---|---|"]
    for part in record["sections"]:
        for claim in part["claims"]:
            holds = {True: "yes", False: "**no**", None: UNKNOWN}[claim["holds"]]
            cells = (part["name"], claim["text"], holds, claim["found"])
            lines.append(f"| {' | '.join(map(_text, cells))} |")
        if part["state"] != "done":
            lines.append(
                f"| {part['name']} | the whole section | {UNKNOWN} | {_text(part['state'])} |"
            )
    return lines


def _head(record: Mapping[str, Any]) -> list[str]:
    return [DRY, ""] if record["dry_run"] else []


def _tables(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for table in dict.fromkeys(row["table"] for row in rows):
        some = [row["cells"] for row in rows if row["table"] == table]
        columns = list(dict.fromkeys(name for cells in some for name in cells))
        yield from ("", *([f"### {table}", ""] if table else []))
        yield f"| {' | '.join(columns)} |"
        yield "|" + "---|" * len(columns)
        for cells in some:
            yield f"| {' | '.join(_text(cells.get(name, '')) for name in columns)} |"


def _text(value: Cell) -> str:
    """A cell: one line, without what Markdown reads as the end of it."""
    if value is None:
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number_text(value)
    return " ".join(str(value).split()).replace("|", "\\|")
