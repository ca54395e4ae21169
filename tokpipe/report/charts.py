"""Charts as inline SVG. Shapes stretch with the page; text keeps its size.

Lengths along x are therefore percentages. Paths cannot have percentages, so they are drawn in an
inner SVG, which is stretched. Each chart has a label for screen readers, and the page repeats its
numbers in a table.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from tokpipe.report.markup import Markup, el, short
from tokpipe.telemetry.human import duration

_TOP, _PLOT, _BELOW = 8, 140, 22
"""Heights in pixels: above the plot, the plot, and below it."""
_UNITS = 1000
"""Width of the inner SVG, in its own units."""
_SCALE = 34
"""Minimum width of the numbers at the y axis in pixels, so that charts side by side line up."""
_ROW = 44
"""Height in pixels of a bar with its label."""
_X_TICKS, _Y_TICKS = 5, 4
"""Maximum number of ticks besides zero."""
_HOUR_S, _DAY_S = 3600, 86_400
_TIME_STEPS_S = [
    *(1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800),
    *(hours * _HOUR_S for hours in (1, 2, 4, 6, 12)),
]


class Span(NamedTuple):
    """A value over a range of x; None where it is unknown."""

    begin: float
    end: float
    value: float | None


class AxisTick(NamedTuple):
    at: float
    text: str


class BarPart(NamedTuple):
    """A part of a bar: its fraction of the full width (0 to 1), its CSS class and its tooltip."""

    fraction: float
    kind: str
    title: str


def steps_chart(
    name: str, spans: Sequence[Span], *, ticks: Sequence[AxisTick], marks: Iterable[float] = ()
) -> Markup:
    """Draw a step function of time, with a dashed line at each of ``marks`` (seconds)."""
    end = max((span.end for span in spans), default=0.0) or 1.0
    inner = el(
        "svg",
        *_areas(spans, end, ticks[-1].at or 1.0),
        y=_TOP,
        width="100%",
        height=_PLOT,
        viewBox=f"0 0 {_UNITS} {_PLOT}",
        preserveAspectRatio="none",
    )
    lines = (
        el("line", x1=x, x2=x, y1=_TOP, y2=_TOP + _PLOT, class_="mark")
        for x in (_percent(mark / end) for mark in marks)
    )
    return _plot(name, ticks, inner, *lines, *_x_axis(_time_ticks(end), end))


def columns_chart(
    name: str, counts: Sequence[int], labels: Sequence[str], *, x_ticks: Sequence[AxisTick]
) -> Markup:
    """Draw a histogram: a column per count and label. ``x_ticks`` are at 0 to ``len(counts)``."""
    ticks = count_ticks(max(counts, default=0), whole=True)
    top, width = ticks[-1].at or 1.0, 1 / max(1, len(counts))
    gap = min(0.15 * width, 0.004)
    columns = (
        el(
            "rect",
            el("title", f"{label}: {count:,}"),
            x=_percent(index * width + gap / 2),
            width=_percent(width - gap),
            y=_TOP + _PLOT * (1 - count / top),
            height=_PLOT * count / top,
            class_="column",
        )
        for index, (count, label) in enumerate(zip(counts, labels, strict=True))
        if count
    )
    return _plot(name, ticks, *columns, *_x_axis(x_ticks, len(counts)))


def bars_chart(name: str, rows: Sequence[tuple[str, str, Sequence[BarPart]]]) -> Markup:
    """Draw a horizontal bar per (label, value, parts), on a track of the full width."""
    marks: list[Markup] = []
    for index, (label, value, parts) in enumerate(rows):
        y = index * _ROW
        bar = {"y": y + 24, "height": 10}
        marks += [
            el("text", label, x=0, y=y + 16, class_="name"),
            el("text", value, x="100%", y=y + 16, text_anchor="end", class_="value"),
            el("rect", x=0, width="100%", **bar, class_="track"),
        ]
        left = 0.0
        for part in parts:
            width = min(part.fraction, 1 - left)
            size = {"x": _percent(left), "width": _percent(width)}
            marks.append(el("rect", el("title", part.title), **size, **bar, class_=part.kind))
            left += width
    return _image(name, el("svg", *marks, class_="chart", width="100%", height=_ROW * len(rows)))


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


def _areas(spans: Iterable[Span], end: float, top: float) -> Iterator[Markup]:
    """Draw each run of known values as an area with a line on top."""
    for is_known, run in groupby(spans, key=lambda span: span.value is not None):
        if is_known:
            steps = [(span.begin, span.end, span.value or 0.0) for span in run]
            heights = [_PLOT * (1 - min(1.0, value / top)) for _, _, value in steps]
            left = f"{_UNITS * steps[0][0] / end:.2f}"
            line = f"M{left} {heights[0]:.2f}" + "".join(
                f"V{y:.2f}H{_UNITS * right / end:.2f}"
                for y, (_, right, _) in zip(heights, steps, strict=True)
            )
            yield el("path", d=f"{line}V{_PLOT}H{left}Z", class_="area")
            yield el("path", d=line, class_="line")


def _x_axis(ticks: Iterable[AxisTick], end: float) -> Iterator[Markup]:
    y = _TOP + _PLOT + 16
    for tick in ticks:
        at = tick.at / (end or 1.0)
        anchor = "start" if at < 0.04 else "end" if at > 0.94 else "middle"
        yield el("text", tick.text, x=_percent(at), y=y, text_anchor=anchor, class_="tick")


def _plot(name: str, ticks: Sequence[AxisTick], *marks: Markup) -> Markup:
    """Draw ``marks`` over a grid, to the right of the y axis with ``ticks``."""
    height = _TOP + _PLOT + _BELOW
    grid, numbers = [], []
    for tick in ticks:
        y = _TOP + _PLOT * (1 - tick.at / (ticks[-1].at or 1.0))
        kind = "grid" if tick.at else "axis"
        grid.append(el("line", x1=0, x2="100%", y1=y, y2=y, class_=kind))
        numbers.append(el("text", tick.text, x="100%", y=y + 4, text_anchor="end", class_="tick"))
    width = max(_SCALE, 7 * max(len(tick.text) for tick in ticks))
    return _image(
        name,
        el("svg", *numbers, class_="chart scale", width=width, height=height),
        el("svg", *grid, *marks, class_="chart", width="100%", height=height),
    )


def _image(name: str, *drawn: Markup) -> Markup:
    return el("div", *drawn, class_="plot", role="img", aria_label=name)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.3f}".rstrip("0").rstrip(".") + "%"
