"""Frames and codes per clip."""

from __future__ import annotations

import math
from collections import Counter

from tokpipe.report.charts import Tick, columns_chart
from tokpipe.report.facts import Facts
from tokpipe.report.markup import Markup, el
from tokpipe.report.parts import counted, details, figure, section, table
from tokpipe.report.sections.sampled import sample_text

NUM_COLUMNS = 24
"""Of a histogram, at the most."""


def lengths(facts: Facts) -> Markup:
    """Frames and codes per clip."""
    sample = facts.sample
    if not sample.num_clips:
        return section("lengths", "Clip lengths", el("p", "There are no clips yet."))
    charts = [
        _length_chart("Frames per clip", sample.frames_per_clip),
        _length_chart("Codes per clip", sample.codes_per_clip),
    ]
    return section(
        "lengths",
        "Clip lengths",
        el("p", f"Of {sample_text(sample)}: {counted(sample.num_clips, 'clip')}."),
        el("div", *(chart for chart, _ in charts), class_="pair"),
        details("Clip lengths as tables", *(numbers for _, numbers in charts)),
    )


def _length_chart(title: str, lengths: Counter[int]) -> tuple[Markup, Markup]:
    low, high = min(lengths), max(lengths)
    width = max(1, math.ceil((high - low + 1) / NUM_COLUMNS))
    counts = [0] * ((high - low) // width + 1)
    for length, number in lengths.items():
        counts[(length - low) // width] += number
    names = [
        f"{low + i * width:,}" + (f" to {low + (i + 1) * width - 1:,}" if width > 1 else "")
        for i in range(len(counts))
    ]
    titles = [f"{name}: {counted(n, 'clip')}" for name, n in zip(names, counts, strict=True)]
    every = max(1, math.ceil(len(counts) / 5))
    ticks = [Tick(i + 0.5, f"{low + i * width:,}") for i in range(0, len(counts), every)]
    total = lengths.total()
    mean = sum(length * number for length, number in lengths.items()) / total
    chart = columns_chart(f"{title}: clips by length", counts, titles, x_ticks=ticks)
    rows = ((name, f"{count:,}") for name, count in zip(names, counts, strict=True) if count)
    return (
        figure(
            title, chart, f"Mean {mean:,.1f}, median {_median(lengths):,}, {low:,} to {high:,}."
        ),
        table(title, (title.lower(), "clips"), rows),
    )


def _median(lengths: Counter[int]) -> int:
    """The lower one of two."""
    left = (lengths.total() + 1) // 2
    for length in sorted(lengths):
        left -= lengths[length]
        if left <= 0:
            break
    return length
