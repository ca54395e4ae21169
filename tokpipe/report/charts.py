"""Charts as SVG that stands in the page itself, each with its numbers as a table.

Colours come from the page's style sheet, so that a chart follows its theme.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 720, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 26
NOTHING = "\N{EN DASH}"
"""What stands in a table where there is no number."""


@dataclass(frozen=True, slots=True)
class Series:
    """One row of numbers, None where there is none. ``colour`` is 1 to 5, of the style sheet's."""

    name: str
    values: Sequence[float | None]
    colour: int = 1


def bars(
    title: str, labels: Sequence[str], series: Series, *, x_ends: tuple[str, str], unit: str
) -> str:
    """A bar for each number, with its label and value where a pointer rests.

    Args:
        x_ends: what stands below the first and below the last bar.
        unit: what is counted.
    """
    top = _round_up(max((value or 0.0 for value in series.values), default=0.0))
    width = (_WIDTH - _LEFT - _RIGHT) / max(1, len(series.values))
    shapes: list[str] = []
    for number, (label, value) in enumerate(zip(labels, series.values, strict=True)):
        height = _scaled(value or 0.0, top)
        if height <= 0:
            continue
        shapes.append(
            f'<rect class="s{series.colour}" x="{_LEFT + number * width:.1f}" '
            f'y="{_HEIGHT - _BOTTOM - height:.1f}" width="{max(0.8, width - 0.8):.1f}" '
            f'height="{height:.1f}"><title>{escape(label)}: {value:,.0f} {escape(unit)}</title>'
            "</rect>"
        )
    return _figure(title, "".join(shapes), top, unit, x_ends, labels, [series])


def lines(
    title: str,
    labels: Sequence[str],
    series: Sequence[Series],
    *,
    x_ends: tuple[str, str],
    unit: str,
    top: float | None = None,
) -> str:
    """A line for each series, over the same places. ``top``: the highest value; theirs if None."""
    values = [value for one in series for value in one.values if value is not None]
    top = _round_up(max(values, default=0.0)) if top is None else top
    step = (_WIDTH - _LEFT - _RIGHT) / max(1, len(labels))
    shapes: list[str] = []
    for one in series:
        points: list[str] = []
        parts: list[list[str]] = [points]
        for number, value in enumerate(one.values):
            if value is None:  # a gap: nothing was known then
                parts.append(points := [])
                continue
            y = _HEIGHT - _BOTTOM - _scaled(value, top)
            points += (f"{_LEFT + x * step:.1f},{y:.1f}" for x in (number, number + 1))
        shapes += (
            f'<polyline class="l{one.colour}" points="{" ".join(part)}"/>' for part in parts if part
        )
    return _figure(title, "".join(shapes), top, unit, x_ends, labels, series)


def _figure(
    title: str,
    shapes: str,
    top: float,
    unit: str,
    x_ends: tuple[str, str],
    labels: Sequence[str],
    series: Sequence[Series],
) -> str:
    name = re.sub(r"\W+", "-", title.lower())
    floor, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    ticks = "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">'
        f"{_short(top * part)}</text>"
        for part in (0.0, 0.5, 1.0)
        for y in [floor - part * (floor - _TOP)]
    )
    ends = "".join(
        f'<text class="tick" x="{x}" y="{_HEIGHT - 6}" text-anchor="{anchor}">{escape(text)}</text>'
        for x, anchor, text in zip((_LEFT, right), ("start", "end"), x_ends, strict=True)
    )
    legend = ""
    if len(series) > 1:
        keys = "".join(f'<li class="k{one.colour}">{escape(one.name)}</li>' for one in series)
        legend = f'<ul class="legend">{keys}</ul>'
    return (
        f'<figure><figcaption id="{name}">{escape(title)} <span>{escape(unit)}</span></figcaption>'
        f'{legend}<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-labelledby="{name}">'
        f"{ticks}{ends}{shapes}</svg>{_table(labels, series)}</figure>"
    )


def _table(labels: Sequence[str], series: Sequence[Series]) -> str:
    head = "".join(f'<th scope="col">{escape(one.name)}</th>' for one in series)
    rows = "".join(
        f'<tr><th scope="row">{escape(label)}</th>'
        + "".join(f"<td>{_number(one.values[number])}</td>" for one in series)
        + "</tr>"
        for number, label in enumerate(labels)
    )
    return (
        "<details><summary>Numbers of this chart</summary>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Numbers of the chart above">'
        f'<table><thead><tr><th scope="col"></th>{head}</tr></thead><tbody>{rows}</tbody></table>'
        "</div></details>"
    )


def _scaled(value: float, top: float) -> float:
    return (_HEIGHT - _BOTTOM - _TOP) * min(value / top, 1.0) if top > 0 else 0.0


def _round_up(value: float) -> float:
    """The next of 1, 2, 2.5 and 5 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= value * 0.9999)


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _number(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if value == int(value) or value >= 100 else f"{value:.3g}"
