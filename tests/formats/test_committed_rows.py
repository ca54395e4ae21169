import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.formats.formats_helpers import clip_ref
from tokpipe.errors import CorruptOutput
from tokpipe.formats.manifest import CommittedRows, PartialRow

Plan = tuple[list[int], list[tuple[tuple[int, int], bool]]]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Segments of each row, and clips of the plan in an order of settling, or of reopening."""
    segments = draw(st.lists(st.integers(1, 4), min_size=1, max_size=30))
    clips = [(row, segment) for row, num in enumerate(segments) for segment in range(num)]
    step = st.tuples(st.sampled_from(clips), st.sampled_from([True, True, True, False]))
    return segments, draw(st.lists(step, max_size=80))


@given(plans())
@settings(max_examples=200)
def test_it_behaves_like_a_set_of_clips(plan: Plan) -> None:
    segments, steps = plan
    committed, settled = CommittedRows(len(segments)), set[tuple[int, int]]()
    for (row, segment), settles in steps:
        ref = clip_ref(row, segment, segments[row])
        assert (ref in committed) == ((row, segment) in settled)
        if settles:
            assert committed.add(ref) == ((row, segment) not in settled)
            settled.add((row, segment))
        else:
            assert committed.reopen(ref) == ((row, segment) in settled)
            settled.discard((row, segment))
        assert (ref in committed) == settles
    done = [all((r, s) in settled for s in range(num)) for r, num in enumerate(segments)]
    assert committed.done(0, len(segments)).tolist() == done
    assert committed.num_done == sum(done)
    assert committed.partial == {
        row: PartialRow(num, {s for s in range(num) if (row, s) in settled})
        for row, num in enumerate(segments)
        if not done[row] and any((row, s) in settled for s in range(num))
    }
    copy = CommittedRows(committed.num_rows, committed.bitmap, committed.partial)
    assert copy.num_done == committed.num_done
    assert copy.bitmap == committed.bitmap


def test_done_returns_any_range_of_the_plan() -> None:
    committed = CommittedRows(37)
    rows = [0, 1, 7, 8, 15, 16, 30, 36]
    for row in rows:
        committed.add(clip_ref(row))
    for start in range(38):
        for stop in range(start, 38):
            found = committed.done(start, stop)
            assert found.dtype == np.bool_
            assert found.tolist() == [row in rows for row in range(start, stop)]
    for start, stop in [(-1, 2), (2, 1), (0, 38)]:
        with pytest.raises(IndexError, match="of a plan of 37"):
            committed.done(start, stop)


@pytest.mark.parametrize("where", [(-1,), (10,), (0, 1, 1), (0, -1, 2), (0, 0, 0)], ids=str)
def test_a_clip_outside_the_plan_is_rejected(where: tuple[int, ...]) -> None:
    committed, ref = CommittedRows(10), clip_ref(*where)
    with pytest.raises(CorruptOutput, match=r"do not belong together: tokenize to a new"):
        committed.add(ref)
    with pytest.raises(CorruptOutput, match="do not belong together"):
        _ = ref in committed


@pytest.mark.parametrize("num_segments", [1, 2, 4])
def test_a_source_whose_length_changed_is_rejected(num_segments: int) -> None:
    committed = CommittedRows(10)
    committed.add(clip_ref(4, 1, 3))
    with pytest.raises(CorruptOutput, match=r"The source changed during the job"):
        committed.add(clip_ref(4, 0, num_segments))


def test_a_bitmap_of_another_plan_is_rejected() -> None:
    for num_rows, bitmap in [(8, b""), (8, b"\0\0"), (0, b"\0"), (7, b"\x80"), (9, b"\0\2")]:
        with pytest.raises(ValueError, match="a bitmap"):
            CommittedRows(num_rows, bitmap)


def test_a_row_takes_one_bit() -> None:
    committed = CommittedRows(8_000_000)
    assert sys.getsizeof(committed._bits) < 1_001_000
    for row in range(0, 8_000_000, 9973):
        committed.add(clip_ref(row, 0, 2))
        committed.add(clip_ref(row, 1, 2))
    assert not committed.partial
    assert committed.num_done == 803
