import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokpipe.media.resample import Selection, select_frames
from tokpipe.types import Cut


def select(
    times_s: list[float],
    end_s: float,
    *,
    span: tuple[float | None, float | None] = (None, None),
    max_clip_frames: int = 10_000,
    **settings: Any,
) -> Selection:
    defaults = {"tick_s": 0.0, "segment": 0, "cut": Cut(max_clip_frames, max_clip_frames)}
    settings = {**defaults, "start_s": span[0], "end_s": span[1], **settings}
    return select_frames(np.array(times_s), end_s, **settings)


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


@pytest.mark.parametrize("rate", [8, 10, 23.976, 24, 25, 29.97, 30, 50, 60, 1000])
def test_resampling_to_the_native_rate_changes_nothing(rate: float) -> None:
    times_s, end_s = constant(500, rate)
    assert select(times_s, end_s, fps=rate).indices.tolist() == list(range(500))
    if rate < 50:  # also with rounded times; at higher rates a millisecond is no rounding error
        milliseconds = [round(value, 3) for value in times_s]
        got = select(milliseconds, round(end_s, 3), fps=rate, tick_s=0.001)
        assert got.indices.tolist() == list(range(500))


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
