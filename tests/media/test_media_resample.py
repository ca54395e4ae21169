import itertools
import math
from collections.abc import Callable
from dataclasses import fields
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokpipe.media.timeline import Selection, Timeline
from tokpipe.types import Cut


def select(
    times_s: list[float],
    end_s: float,
    *,
    span: tuple[float | None, float | None] = (None, None),
    max_clip_frames: int = 10_000,
    **settings: Any,
) -> Selection:
    times = {"times_s": np.array(times_s), "end_s": end_s, "tick_s": settings.pop("tick_s", 0.0)}
    others: dict[str, Any] = dict.fromkeys(one.name for one in fields(Timeline))
    defaults = {"segment": 0, "cut": Cut(max_clip_frames, max_clip_frames)}
    settings = {**defaults, "start_s": span[0], "end_s": span[1], **settings}
    return Timeline(**others | times).select(**settings)


def constant(num_frames: int, rate: float) -> tuple[list[float], float]:
    return [k / rate for k in range(num_frames)], num_frames / rate


# Times in milliseconds and a rate in whole frames keep the reference below exact.
timelines = st.lists(st.integers(1, 400), min_size=1, max_size=40).map(
    lambda gaps: list(itertools.accumulate(gaps, initial=0))
)
Span = tuple[int | None, int | None]
rates = st.sampled_from([1, 2, 3, 5, 8, 10, 24, 25, 30, 60])
spans = st.tuples(st.none() | st.integers(0, 8000), st.none() | st.integers(1, 9000))


def select_ms(edges: list[int], span_ms: Span, **kwargs: Any) -> Selection:
    start_s, end_s = (None if value is None else value / 1000 for value in span_ms)
    times_s = [edge / 1000 for edge in edges]
    return select(times_s[:-1], times_s[-1], span=(start_s, end_s), **kwargs)


@given(edges=timelines, fps=rates, span_ms=spans)
def test_outputs_show_the_frame_on_screen(edges: list[int], fps: int, span_ms: Span) -> None:
    start, end = span_ms[0] or 0, min(edges[-1], span_ms[1] or 10**9)
    expected, k = [], 0
    while (at := start + Fraction(1000 * k, fps)) < end:
        expected.append(max(i for i, edge in enumerate(edges[:-1]) if edge <= at))
        k += 1
    got = select_ms(edges, span_ms, fps=fps)
    assert got.indices.tolist() == expected
    assert got.num_segments == (1 if expected else 0)


@given(edges=timelines, span_ms=spans)
def test_without_a_rate_each_frame_is_returned_once(edges: list[int], span_ms: Span) -> None:
    start, end = span_ms[0] or 0, span_ms[1] or 10**9
    got = select_ms(edges, span_ms, fps=None)
    assert got.indices.tolist() == [i for i, e in enumerate(edges[:-1]) if start <= e < end]


@given(edges=timelines, fps=st.none() | rates, max_clip_frames=st.integers(1, 50))
def test_segments_together_are_the_whole(
    edges: list[int], fps: int | None, max_clip_frames: int
) -> None:
    span = (None, None)
    whole = select_ms(edges, span, fps=fps).indices.tolist()
    num_segments = math.ceil(len(whole) / max_clip_frames)
    parts = [
        select_ms(edges, span, fps=fps, segment=j, max_clip_frames=max_clip_frames)
        for j in range(num_segments)
    ]
    assert {part.num_segments for part in parts} <= {num_segments}
    assert [int(i) for part in parts for i in part.indices] == whole
    assert all(len(part.indices) == max_clip_frames for part in parts[:-1])


RATES = {
    **{str(rate): Fraction(rate) for rate in (8, 10, 24, 25, 30, 48, 50, 60, 120)},
    **{f"{rate * 1000 / 1001:.3f}": Fraction(rate * 1000, 1001) for rate in (24, 30, 60, 120)},
}
"""The rate as a job names it, and the true one."""


@pytest.mark.parametrize("rounding", [math.floor, round, math.ceil])
@pytest.mark.parametrize("ticks_per_s", [600, 1000, 12_800, 90_000], ids="{}/s".format)
@pytest.mark.parametrize("name", RATES)
def test_at_its_own_rate_each_frame_comes_once_however_its_times_are_rounded(
    name: str, ticks_per_s: int, rounding: Callable[[Fraction], int]
) -> None:
    rate = RATES[name]
    for phase in (Fraction(0), Fraction(1, 2), Fraction(9, 10)):
        edges = [rounding(phase + k * ticks_per_s / rate) for k in range(501)]
        durations = {rounding(ticks_per_s / rate), edges[500] - edges[499]}
        for duration in durations:
            times_s = [edge / ticks_per_s for edge in edges[:500]]
            end_s = (edges[499] + duration) / ticks_per_s
            for fps in (float(name), float(rate)):
                got = select(times_s, end_s, fps=fps, tick_s=1 / ticks_per_s)
                assert got.indices.tolist() == list(range(500)), (phase, duration, fps)


def test_times_that_are_exact_need_no_tick() -> None:
    assert select(*constant(500, 1000), fps=1000).indices.tolist() == list(range(500))


@pytest.mark.parametrize("start_s", [None, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("fps", [None, 8.0])
def test_a_span_that_begins_before_the_video_begins_with_its_first_frame(
    start_s: float | None, fps: float | None
) -> None:
    times_s = [1.03 + k / 8 for k in range(16)]
    got = select(times_s, 3.03, fps=fps, span=(start_s, 2.03))
    assert got.indices.tolist() == list(range(8))


def test_a_tick_as_coarse_as_the_frames_is_not_a_rounding_error() -> None:
    got = select(*constant(25, 25), fps=8, tick_s=0.04)
    assert got.indices.tolist() == [0, 3, 6, 9, 12, 15, 18, 21]


def test_a_rate_above_the_native_one_repeats_frames() -> None:
    assert select(*constant(3, 10), fps=20).indices.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("span", [(5.0, None), (1.0, None), (0.5, 0.5), (0.7, 0.2)])
def test_a_span_outside_of_the_video_has_no_frames(span: tuple[float, float | None]) -> None:
    got = select(*constant(10, 10), fps=8, span=span)
    assert (len(got.indices), got.num_segments) == (0, 0)


def test_a_segment_beyond_the_last_is_empty() -> None:
    got = select(*constant(10, 10), fps=10, segment=3, max_clip_frames=4)
    assert (len(got.indices), got.num_segments) == (0, 3)
