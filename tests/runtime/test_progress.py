"""What a person sees while a job runs, on a terminal and elsewhere."""

import io
from dataclasses import replace

from rich.console import Console

from tests.runtime.simulated_world import ref_of
from tokpipe.config.job import RuntimeConfig
from tokpipe.formats.manifest import CommittedRows, ManifestEntry, ManifestState
from tokpipe.runtime.dispatch import Dispatcher, Limits
from tokpipe.runtime.progress import ProgressView, _bar
from tokpipe.runtime.snapshot import Snapshot, Snapshots
from tokpipe.telemetry.account import Account
from tokpipe.types import ClipRef, Rejected

UP: dict[str, float] = {"decode": 10.0, "encode": 10.0, "write": 10.0}
SNAPSHOT = Snapshot(
    total=1_200,
    expected=3_000,
    passed={"decode": 40, "encode": 30, "write": 20},
    actors={"decode": 3, "encode": 1, "write": 1},
    rejected={"truncated": 3, "no_video": 1},
    run=Account(paid_s=10.0, useful_s=5.0),
    recent=Account({"encode": 9.5}, UP, clips={"decode": 60}),
    recent_s=8.0,
)


def shown(snapshot: Snapshot, *, on_terminal: bool) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=on_terminal, width=100, color_system=None)
    with ProgressView(console, interval_s=1.0) as view:
        view.show(snapshot)
    return stream.getvalue()


def test_a_terminal_shows_each_stage_what_was_rejected_and_the_speed() -> None:
    text = shown(SNAPSHOT, on_terminal=True)
    assert "40/~3,000" in text
    assert "3 actors" in text
    assert "rejected 4: truncated 3, no_video 1" in text
    assert "speed of light 95%, limited by encode" in text
    assert max(map(len, text.splitlines())) <= 100 + len("\x1b[2K\x1b[1A") * 8


def test_a_bar_shows_the_fraction_done() -> None:
    bar = _bar(1_000, 3_000)
    colours = {str(span.style): bar.plain[span.start : span.end] for span in bar.spans}
    assert colours == {"green": "━" * 8, "bright_black": "━" * 16}


def test_without_a_terminal_one_line_says_the_same() -> None:
    (line,) = shown(SNAPSHOT, on_terminal=False).splitlines()
    assert line.startswith("of ~3,000 clips: decode 40 (7.5/s, 3 actors), encode 30")
    assert "rejected 4, goodput 50%, ETA -; speed of light 95%" in line


def test_a_known_total_is_not_marked_as_an_estimate() -> None:
    assert "40/3,000" in shown(replace(SNAPSHOT, total=3_000), on_terminal=True)
    assert "rejected" not in shown(replace(SNAPSHOT, rejected={}), on_terminal=True)


def test_unopened_rows_are_expected_to_be_like_opened_ones() -> None:
    state = ManifestState(CommittedRows(100))
    refused = Rejected(ClipRef("a", 0, 0, 1, "u"), "decode", "empty", "")
    state.apply(ManifestEntry(0, "w", "now", rejected=(refused,)))
    limits = Limits(RuntimeConfig(), False, 8, 1000, 60.0, 1.0)
    snapshots = Snapshots(state)

    def expected(opened: int, extra_clips: int) -> tuple[int, int]:
        dispatcher = Dispatcher(limits, ref_of)
        dispatcher.parts.out.count("num_opened", opened)
        dispatcher.parts.out.count("num_extra_clips", extra_clips)
        snapshot = snapshots.take(dispatcher)
        return snapshot.total, snapshot.expected

    assert expected(0, 0) == (100, 100)
    assert expected(10, 20) == (120, 120 + 89 * 2)
    assert expected(99, 150) == (250, 250)
    assert expected(101, 150) == (250, 250)  # rows that had to be decoded again
