"""What the charts of a report show. ``templates/charts.html`` draws them."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from tokpipe.report.history import History, StageUse
from tokpipe.telemetry.human import duration, short
from tokpipe.telemetry.usage import CodeUsage

NUM_BARS = 64  # Columns of the histogram of codes
MAX_LENGTHS = 24  # Columns of a histogram of lengths
_NUM_TICKS = 4  # Maximum number of ticks besides zero


class Column(NamedTuple):
    """A value over a range of x, with its tooltip. Neither 0 nor None (unknown) is drawn."""

    begin: float
    end: float
    value: float | None
    title: str
    label: str = ""  # What the range is, in a histogram


Tick = tuple[float, str]  # Where it is at an axis, and its text


class Columns(NamedTuple):
    """Columns over a grid."""

    columns: Sequence[Column]
    end: float  # x is 0 to this
    y_ticks: Sequence[Tick]
    x_ticks: Sequence[Tick]


BarPart = tuple[float, float, str, str]  # Left and width (0 to 1), CSS class, tooltip
Bar = tuple[str, str, list[BarPart]]  # Label, value, parts


def rate_chart(history: History) -> Columns:
    """Frames per second over working time."""
    rates = [step.frames_per_s for step in history.steps]
    return _over_time(history, rates, _count_ticks(max(rates)))


def speed_chart(history: History) -> Columns:
    """Fraction of the speed of light over working time."""
    speeds = [step.speed for step in history.steps]
    shares = [None if speed is None else speed.share for speed in speeds]
    return _over_time(history, shares, [(at, f"{at:.0%}") for at in (0.0, 0.5, 1.0)])


def _over_time(
    history: History, values: Sequence[float | None], y_ticks: Sequence[Tick]
) -> Columns:
    columns = [
        Column(step.begin_s, step.end_s, value, f"{value or 0:,.4g}")
        for step, value in zip(history.steps, values, strict=True)
    ]
    end_s = history.worked_s or 1.0
    times_s = (end_s * i / _NUM_TICKS for i in range(_NUM_TICKS + 1))
    return Columns(columns, end_s, y_ticks, [(at, duration(at)) for at in times_s])


def code_histogram(usage: CodeUsage) -> Columns:
    """Count codes in equal parts of the codebook."""
    size = usage.codebook_size
    num = min(NUM_BARS, size)
    edges = [index * size // num for index in range(num + 1)]
    labels = [f"{low:,} to {high - 1:,}" for low, high in pairwise(edges)]
    ticks = [(i * num / 4, f"{min(i * size // 4, size - 1):,}") for i in range(5)]
    return _histogram(labels, usage.histogram(num).tolist(), ticks)


def length_histogram(lengths: Counter[int]) -> Columns:
    """Count clips by length; ``lengths`` has at least one."""
    low, high = min(lengths), max(lengths)
    width = math.ceil((high - low + 1) / MAX_LENGTHS)
    starts = range(low, high + 1, width)
    counts = [0] * len(starts)
    for length, number in lengths.items():
        counts[(length - low) // width] += number
    labels = [f"{at:,}" if width == 1 else f"{at:,} to {at + width - 1:,}" for at in starts]
    every = math.ceil(len(counts) / 5)
    ticks = [(i + 0.5, f"{starts[i]:,}") for i in range(0, len(counts), every)]
    return _histogram(labels, counts, ticks)


def _histogram(labels: list[str], counts: list[int], x_ticks: list[Tick]) -> Columns:
    columns = [
        Column(at, at + 1, count, f"{label}: {count:,}", label)
        for at, (label, count) in enumerate(zip(labels, counts, strict=True))
    ]
    return Columns(columns, len(columns), _count_ticks(max(counts), whole=True), x_ticks)


def rejected_bars(reasons: Sequence[tuple[str, int]]) -> list[Bar]:
    """A bar per (reason, number of clips), the largest of which is first and has full width."""
    most, total = reasons[0][1], sum(count for _, count in reasons)
    of = "of the rejected clips"
    return [
        (why, f"{num:,}", [(0, num / most, "bad", f"{why}: {num / total:.1%} {of}")])
        for why, num in reasons
    ]


def stage_bars(stages: Sequence[StageUse]) -> list[Bar]:
    """A bar per stage, with a part per activity of its actors."""
    bars = []
    for use in stages:
        parts, left = list[BarPart](), 0.0
        for name, fraction in sorted(use.fractions.items(), key=lambda x: x[0] != use.stage):
            width = min(fraction, 1 - left)
            kind = "work" if name == use.stage else "moving"
            parts.append((left, width, kind, f"{name} {fraction:.1%}"))
            left += width
        actors = f"{use.actors:,.1f}"
        label = f"{use.stage}: {actors} actor{'' if actors == '1.0' else 's'}"
        bars.append((label, f"busy {1 - use.waiting:.0%}", parts))
    return bars


def _count_ticks(largest: float, *, whole: bool = False) -> list[Tick]:
    """Return ticks from 0 to the first round number >= ``largest``; ``whole``: integers only."""
    if largest <= 0:
        return [(0, "0")]
    rough = largest / _NUM_TICKS
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    step = max(1.0, step) if whole else step
    steps = (i * step for i in range(math.ceil(largest / step) + 1))
    return [(at, short(at, exact_below=1e4)) for at in steps]
