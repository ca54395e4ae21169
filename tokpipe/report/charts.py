"""Charts as inline SVG: marks stretch with the page, and text keeps its size.

So lengths along x are percentages. Paths cannot have those, and stand in an inner SVG that is
stretched. Every chart has a name for those who do not see it; its numbers stand in a table below.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tokpipe.report.markup import Markup, el
from tokpipe.telemetry.human import duration

_TOP, _PLOT, _BELOW = 8, 140, 22
"""Pixels above, of, and below what is drawn."""
_UNITS = 1000
"""Units of the inner SVG along x."""
_SCALE = 34
"""Pixels of the numbers beside it, at the least, so that charts side by side line up."""
_ROW = 44
"""Pixels of a bar with its label above."""
_X_TICKS, _Y_TICKS = 5, 4
"""So many at the most, beside zero."""
_TIME_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 4 * 3600)
_LONG_TIME_STEPS_S = (6 * 3600, 12 * 3600, 86_400)


@dataclass(frozen=True, slots=True)
class Span:
    """A value that holds from one place to another; None where there is none."""

    begin: float
    end: float
    value: float | None


@dataclass(frozen=True, slots=True)
class Tick:
    at: float
    text: str


def steps_chart(
    name: str, spans: Sequence[Span], *, ticks: Sequence[Tick], marks: Iterable[float] = ()
) -> Markup:
    """An area over time, level by level; ``marks`` are moments to point out."""
    end = max([span.end for span in spans], default=0.0) or 1.0
    top = ticks[-1].at or 1.0
    outlines = [_outline(run, end, top) for run in _runs(spans)]
    inner = el(
        "svg",
        *(el("path", d=f"{path}V{_PLOT}H{left:g}Z", class_="area") for left, path in outlines),
        *(el("path", d=path, class_="line") for _, path in outlines),
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
    axis = _axis(_time_ticks(end), end)
    return _plot(name, ticks, *_gridlines(ticks), inner, *lines, *axis)


def columns_chart(
    name: str, counts: Sequence[int], titles: Sequence[str], *, x_ticks: Sequence[Tick]
) -> Markup:
    """A histogram: a column for each count; ticks stand at places from 0 to their number."""
    ticks = count_ticks(max(counts, default=0), whole=True)
    top, width = ticks[-1].at or 1.0, 1 / max(1, len(counts))
    gap = min(0.15 * width, 0.004)
    columns = (
        el(
            "rect",
            el("title", title),
            x=_percent(index * width + gap / 2),
            width=_percent(width - gap),
            y=_TOP + _PLOT * (1 - count / top),
            height=_PLOT * count / top,
            class_="column",
        )
        for index, (count, title) in enumerate(zip(counts, titles, strict=True))
        if count
    )
    return _plot(name, ticks, *_gridlines(ticks), *columns, *_axis(x_ticks, len(counts)))


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a bar: its share of the whole width, and what it is."""

    share: float
    kind: str
    """A class of the style sheet."""
    title: str


def bars_chart(name: str, rows: Iterable[tuple[str, str, Sequence[Part]]]) -> Markup:
    """Horizontal bars of (label, value, parts), each on a track that stands for all of it."""
    marks: list[Markup] = []
    index = -1
    for index, (label, value, parts) in enumerate(rows):
        y = index * _ROW
        marks += [
            el("text", label, x=0, y=y + 16, class_="name"),
            el("text", value, x="100%", y=y + 16, text_anchor="end", class_="value"),
            el("rect", x=0, width="100%", y=y + 24, height=10, class_="track"),
        ]
        left = 0.0
        for part in parts:
            marks.append(
                el(
                    "rect",
                    el("title", part.title),
                    x=_percent(left),
                    width=_percent(min(part.share, 1 - left)),
                    y=y + 24,
                    height=10,
                    class_=part.kind,
                )
            )
            left = min(1.0, left + part.share)
    svg = el("svg", *marks, class_="chart", width="100%", height=_ROW * (index + 1))
    return _image(name, svg)


def count_ticks(largest: float, *, whole: bool = False) -> list[Tick]:
    """From 0 to the first round number that is not below ``largest``; ``whole`` numbers only."""
    if largest <= 0:
        return [Tick(0, "0")]
    rough = largest / _Y_TICKS
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    step = max(1.0, step) if whole else step
    return [Tick(i * step, _number(i * step)) for i in range(math.ceil(largest / step) + 1)]


def share_ticks() -> list[Tick]:
    """0 % to 100 %."""
    return [Tick(i / 2, f"{i / 2:.0%}") for i in range(3)]


def _number(value: float) -> str:
    for size, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e4, " k")):
        if value >= size:
            return f"{value / (1e3 if unit == ' k' else size):g}{unit}"
    return f"{value:,g}"


def _time_ticks(end_s: float) -> list[Tick]:
    steps = (*_TIME_STEPS_S, *_LONG_TIME_STEPS_S)
    days = 86_400 * max(1, math.ceil(end_s / _X_TICKS / 86_400))
    step = next((one for one in steps if one * _X_TICKS >= end_s), days)
    return [Tick(i * step, duration(i * step)) for i in range(int(end_s / step) + 1)]


def _runs(spans: Iterable[Span]) -> Iterator[list[tuple[float, float, float]]]:
    """Yield stretches of spans without a gap of values."""
    run: list[tuple[float, float, float]] = []
    for span in spans:
        if span.value is not None:
            run.append((span.begin, span.end, span.value))
        elif run:
            yield run
            run = []
    if run:
        yield run


def _outline(run: list[tuple[float, float, float]], end: float, top: float) -> tuple[float, str]:
    """Where a stretch begins, and its upper edge as a path."""
    x = [round(_UNITS * begin / end, 2) for begin, _, _ in run] + [_UNITS * run[-1][1] / end]
    y = [_PLOT * (1 - min(1.0, value / top)) for _, _, value in run]
    pieces = [f"V{level:.2f}H{right:.2f}" for level, right in zip(y, x[1:], strict=True)]
    return x[0], f"M{x[0]:g} {y[0]:.2f}" + "".join(pieces)


def _gridlines(ticks: Sequence[Tick]) -> Iterator[Markup]:
    for tick in ticks:
        y = _height(tick, ticks)
        yield el("line", x1=0, x2="100%", y1=y, y2=y, class_="axis" if not tick.at else "grid")


def _height(tick: Tick, ticks: Sequence[Tick]) -> float:
    return _TOP + _PLOT * (1 - tick.at / (ticks[-1].at or 1.0))


def _axis(ticks: Sequence[Tick], end: float) -> Iterator[Markup]:
    for tick in ticks:
        share = tick.at / (end or 1.0)
        anchor = "start" if share < 0.04 else "end" if share > 0.94 else "middle"
        yield el(
            "text",
            tick.text,
            x=_percent(share),
            y=_TOP + _PLOT + 16,
            text_anchor=anchor,
            class_="tick",
        )


def _plot(name: str, ticks: Sequence[Tick], *marks: Markup) -> Markup:
    """What was drawn, to the right of the numbers that its height stands for."""
    height = _TOP + _PLOT + _BELOW
    numbers = (
        el(
            "text",
            tick.text,
            x="100%",
            y=_height(tick, ticks) + 4,
            text_anchor="end",
            class_="tick",
        )
        for tick in ticks
    )
    width = max(_SCALE, 7 * max(len(tick.text) for tick in ticks))
    return _image(
        name,
        el("svg", *numbers, class_="chart scale", width=width, height=height),
        el("svg", *marks, class_="chart", width="100%", height=height),
    )


def _image(name: str, *drawn: Markup) -> Markup:
    return el("div", *drawn, class_="plot", role="img", aria_label=name)


def _percent(share: float) -> str:
    return f"{100 * share:.3f}".rstrip("0").rstrip(".") + "%"
