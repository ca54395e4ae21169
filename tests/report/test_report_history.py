"""Working time and what was done in it, in a bounded number of steps."""

from itertools import pairwise, repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.formats.formats_helpers import encoded_clip
from tests.report.report_outputs import SPENT, UP, entry, with_history
from tokpipe.formats.manifest import ManifestEntry
from tokpipe.formats.shard import receipt_of
from tokpipe.reader.output import Output
from tokpipe.report import history as history_module
from tokpipe.report.history import MAX_STEPS, Group, History, read_groups
from tokpipe.telemetry.account import Account

RECEIPT = receipt_of("shard", [encoded_clip(1, [5, 5])], b"", b"")


def history(*entries: ManifestEntry) -> History:
    clips = [sum(len(one.clips) for one in entry.shards) for entry in entries]
    frames = [sum(one.num_frames for one in entry.shards) for entry in entries]
    return History(map(Group, entries, repeat(1), clips, frames))


def commit(seq: int, at_s: float, writer: str) -> ManifestEntry:
    return entry(seq, at_s, writer, shards=(RECEIPT,), account=Account(SPENT, UP))


gaps_s = st.floats(-5, 1e6).map(lambda s: round(s, 3))


@given(st.lists(st.tuples(gaps_s, st.sampled_from("ab")), min_size=1, max_size=60))
def test_steps_lose_nothing_whatever_the_times(gaps: list[tuple[float, str]]) -> None:
    at_s, entries = 0.0, []
    worked_s, before = 0.0, ""
    for seq, (gap_s, writer) in enumerate(gaps):
        at_s += gap_s
        worked_s += max(0.0, gap_s) if writer == before else 0.0
        before = writer
        entries.append(commit(seq, at_s, writer))
    found = history(*entries)
    steps = found.steps
    assert len(steps) <= MAX_STEPS
    assert found.worked_s == pytest.approx(worked_s, abs=0.01)
    for name, each in (("frames", 10), ("clips", 1), ("spent encode", 8), ("up write", 5)):
        assert sum(step[name] for step in steps) == pytest.approx(each * len(gaps))
    assert all(one.end_s == two.begin_s for one, two in pairwise(steps))


def test_work_is_spread_over_the_time_it_took() -> None:
    claim = entry(0, 0, "a")
    found = history(claim, commit(1, 4, "a"), commit(2, 6, "a"))
    assert [step["frames"] for step in found.steps] == pytest.approx([2.5] * 4 + [5] * 2)


def test_the_time_between_drivers_is_left_out() -> None:
    first = (entry(0, 0, "a"), commit(1, 10, "a"))
    second = (entry(2, 1_000_000, "b"), commit(3, 1_000_010, "b"))
    third = (entry(4, 5, "c"), commit(5, 15, "c"))  # by a clock that is far behind
    found = history(*first, *second, *third)
    assert found.worked_s == 30
    assert found.starts_s == [0, 10, 20]


def test_stages_report_their_rate_without_waiting() -> None:
    entries = [entry(0, 0, "a"), *(commit(n, 10 * n, "a") for n in range(1, 4))]
    decode, encode, write = history(*entries).stages()
    assert encode.actors == pytest.approx(1)
    assert encode.waiting == pytest.approx(0.19)
    assert encode.own_frames_per_s == pytest.approx(10 / 8)
    assert decode.own_frames_per_s == pytest.approx(10 / 4.5)
    assert write.own_frames_per_s == pytest.approx(10 / 0.2 * 0.5)


def test_entries_without_actor_seconds_do_not_lower_the_averages() -> None:
    old = [entry(0, 0, "a"), entry(1, 1000, "a", shards=(RECEIPT,))]
    new = [entry(2, 2000, "b"), commit(3, 2010, "b")]
    assert history(*old).stages() == []
    (_, encode, _) = history(*old, *new).stages()
    assert encode.actors == pytest.approx(1)
    assert encode.own_frames_per_s == pytest.approx(10 / 8)


@pytest.mark.parametrize("most", [2, 3, 5, 100])
def test_a_sample_of_a_long_manifest_has_exact_totals(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_module, "MAX_ENTRIES", most)
    output = Output(with_history())
    found = list(read_groups(output))
    assert [group.entry.seq for group in found] == sorted({g.entry.seq for g in found})
    assert len(found) == min(most, output.state.next_seq)
    assert sum(group.num_entries for group in found) == output.state.next_seq
    assert sum(group.clips for group in found) == output.num_clips
    history = History(found)
    assert history.whole["frames"] == pytest.approx(output.totals.num_frames)
    assert (len(history.starts_s), history.num_read) == (2, len(found))
    assert history.worked_s <= 80
    assert history.whole.speed is not None
    assert history.whole.speed.share == pytest.approx(0.8)
