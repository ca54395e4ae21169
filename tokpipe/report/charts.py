"""Charts as inline SVG. Shapes stretch with the page; text keeps its size.

Lengths along x are therefore percentages. Each chart has a label for screen readers, and the page
repeats its numbers in a table.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tokpipe.report.markup import Markup, html, short
from tokpipe.telemetry.human import duration

_TOP, _PLOT, _BELOW = 8, 140, 22
"""Heights in pixels: above the plot, the plot, and below it."""
_SCALE = 34
"""Minimum width of the numbers at the y axis in pixels, so that charts side by side line up."""
_ROW = 44  # Height in pixels of a bar with its label
_X_TICKS, _Y_TICKS = 5, 4
"""Maximum number of ticks besides zero."""
_HOUR_S, _DAY_S = 3600, 86_400
_TIME_STEPS_S = [
    *(1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800),
    *(hours * _HOUR_S for hours in (1, 2, 4, 6, 12)),
]


class Column(NamedTuple):
    """A value over a range of x, with a tooltip in place of the number; None where unknown."""

    begin: float
    end: float
    value: float | None
    title: str | None = None


class AxisTick(NamedTuple):
    at: float
    text: str


class BarPart(NamedTuple):
    """A part of a bar: its fraction of the full width (0 to 1), its CSS class and its tooltip."""

    fraction: float
    kind: str
    title: str


def columns_chart(
    name: str,
    columns: Sequence[Column],
    *,
    ticks: Sequence[AxisTick],
    x_ticks: Sequence[AxisTick] | None = None,
    marks: Iterable[float] = (),
) -> Markup:
    """Draw columns over a grid, to the right of the y axis, with a dashed line at each of
    ``marks``. Without ``x_ticks``, x is seconds."""
    end, top = max((one.end for one in columns), default=0.0) or 1.0, ticks[-1].at or 1.0
    line = '<line x1="0" x2="100%" y1="{0:.6g}" y2="{0:.6g}" class="{1}"></line>'
    number = '<text x="100%" y="{:.6g}" text-anchor="end" class="tick">{}</text>'
    drawn, numbers = [], []
    for tick in ticks:
        y = _TOP + _PLOT * (1 - tick.at / top)
        drawn.append(html(line, y, "grid" if tick.at else "axis"))
        numbers.append(html(number, y + 4, tick.text))
    for begin, stop, value, title in columns:
        if value:
            width, height = (stop - begin) / end, _PLOT * min(1.0, value / top)
            gap = min(0.15 * width, 0.004)
            place = (begin / end + gap / 2, width - gap, _TOP + _PLOT - height, height)
            drawn.append(_rect("column", title or f"{value:,.4g}", *place))
    line = '<line x1="{0:.6g}%" x2="{0:.6g}%" y1="{1}" y2="{2}" class="mark"></line>'
    drawn += (html(line, 100 * mark / end, _TOP, _TOP + _PLOT) for mark in marks)
    text = '<text x="{:.6g}%" y="{}" text-anchor="{}" class="tick">{}</text>'
    for tick in _time_ticks(end) if x_ticks is None else x_ticks:
        at = tick.at / end
        anchor = "start" if at < 0.04 else "end" if at > 0.94 else "middle"
        drawn.append(html(text, 100 * at, _TOP + _PLOT + 16, anchor, tick.text))
    scale = max(_SCALE, 7 * max(len(tick.text) for tick in ticks))
    axis = _svg(numbers, "chart scale", f"{scale}", _TOP + _PLOT + _BELOW)
    return _image(name, axis, _svg(drawn, "chart", "100%", _TOP + _PLOT + _BELOW))


def bars_chart(name: str, rows: Sequence[tuple[str, str, Sequence[BarPart]]]) -> Markup:
    """Draw a horizontal bar per (label, value, parts), on a track of the full width."""
    bars: list[Markup] = []
    for index, (label, value, parts) in enumerate(rows):
        y = index * _ROW
        track = (
            '<text x="0" y="{0}" class="name">{2}</text>'
            '<text x="100%" y="{0}" text-anchor="end" class="value">{3}</text>'
            '<rect x="0" width="100%" y="{1}" height="10" class="track"></rect>'
        )
        bars.append(html(track, y + 16, y + 24, label, value))
        left = 0.0
        for part in parts:
            width = min(part.fraction, 1 - left)
            bars.append(_rect(part.kind, part.title, left, width, y + 24, 10))
            left += width
    return _image(name, _svg(bars, "chart", "100%", _ROW * len(rows)))


def count_ticks(largest: float, *, whole: bool = False) -> list[AxisTick]:
    """Return ticks from 0 to the first round number >= ``largest``; ``whole``: integers only."""
    if largest <= 0:
        return [AxisTick(0, "0")]
    rough = largest / _Y_TICKS
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    step = max(1.0, step) if whole else step
    steps = (i * step for i in range(math.ceil(largest / step) + 1))
    return [AxisTick(at, short(at, exact_below=1e4)) for at in steps]


def _time_ticks(end_s: float) -> list[AxisTick]:
    days = math.ceil(end_s / _X_TICKS / _DAY_S)
    step = next((one for one in _TIME_STEPS_S if one * _X_TICKS >= end_s), days * _DAY_S)
    return [AxisTick(at, duration(at)) for at in range(0, int(end_s) + 1, step)]


def _rect(kind: str, title: str, x: float, width: float, y: float, height: float) -> Markup:
    """A rectangle with a tooltip; x and width are fractions of the chart's width."""
    return html(
        '<rect x="{:.6g}%" width="{:.6g}%" y="{:.6g}" height="{:.6g}" class="{}">'
        "<title>{}</title></rect>",
        *(100 * x, 100 * width, y, height, kind, title),
    )


def _svg(drawn: Iterable[Markup], kind: str, width: str, height: int) -> Markup:
    return html('<svg class="{}" width="{}" height="{}">{}</svg>', kind, width, height, drawn)


def _image(name: str, *drawn: Markup) -> Markup:
    return html('<div class="plot" role="img" aria-label="{}">{}</div>', name, drawn)
