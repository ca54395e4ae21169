"""What a person sees while a job runs and at its end, on terminals of any width and elsewhere."""

import io
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.end_to_end.jobs import wait_until
from tests.runtime.bench import Bench, one_node, only, refs_of
from tests.runtime.simulated_world import ref_of
from tokpipe.cli import main
from tokpipe.config.job import JobConfig, OutputConfig, RuntimeConfig
from tokpipe.formats.manifest import CommittedRows, ManifestEntry, ManifestState, Totals
from tokpipe.runtime.dispatch import Dispatcher, Limits
from tokpipe.runtime.dispatch.protocol import (
    ActorLost,
    ActorPlaced,
    ActorUp,
    Commit,
    DecodedInfo,
    StartActor,
    StopRequested,
    Tick,
)
from tokpipe.runtime.job import Outcome, summary_lines
from tokpipe.runtime.progress import ProgressView
from tokpipe.runtime.snapshot import Snapshot, Snapshots, waiting_for
from tokpipe.telemetry.account import Account
from tokpipe.types import STAGES, ClipRef, Rejected, Stage

UP: dict[str, float] = {"decode": 10.0, "encode": 10.0, "write": 10.0}
SNAPSHOT = Snapshot(
    total=1_200,
    expected=3_000,
    passed={"decode": 40, "encode": 30, "write": 20},
    actors={"decode": 3, "encode": 1, "write": 1},
    rejected={"truncated": 3, "no_video": 1},
    run=Account(paid_s=10.0, useful_s=5.0),
    recent=Account({"encode": 9.5}, UP, clips={"decode": 60, "encode": 30}),
    recent_s=8.0,
    encoding_s=6.0,
    elapsed_s=42.0,
)
STARTING = replace(
    SNAPSHOT,
    passed=dict.fromkeys(STAGES, 0),
    actors=dict.fromkeys(STAGES, 0),
    rejected={},
    recent=Account(),
    encoding_s=0.0,
    waiting_for="starting 2 decode and 1 encode workers (12 s)",
)
LARGEST = replace(
    SNAPSHOT,
    total=100_000_000,
    expected=100_000_001,
    passed=dict.fromkeys(STAGES, 100_000_000),
    actors=dict.fromkeys(STAGES, 10_000),
    rejected={f"a_reason_with_a_long_name_{number}": 10**7 - number for number in range(9)},
    recent=Account({"encode": 6e5}, {"encode": 6e5}, clips=dict.fromkeys(STAGES, 5_999_994)),
    recent_s=60.0,
    encoding_s=1e6,
    elapsed_s=1e6,
)
WAITING = replace(LARGEST, waiting_for="no room for encode workers: " + "a long reason " * 20)
SNAPSHOTS = STARTING, SNAPSHOT, LARGEST, WAITING


def shown(snapshot: Snapshot, *, on_terminal: bool = True, width: int = 100) -> list[str]:
    """The lines of a terminal without colours, or of a file."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=on_terminal, width=width, color_system=None)
    with ProgressView(console, interval_s=1.0) as view:
        view.show(snapshot)
    text = stream.getvalue()
    for control in ("\x1b[?25l", "\x1b[?25h", "\x1b[1A", "\x1b[2K"):
        text = text.replace(control, "")
    last_frame = text[max(0, text.rfind("decode  ")) :] if on_terminal else text
    return [line.rpartition("\r")[2] for line in last_frame.splitlines()]


def stage_lines(snapshot: Snapshot, width: int) -> list[str]:
    return shown(snapshot, width=width)[:3]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_columns_stay_where_they_are_whatever_happens(width: int) -> None:
    places = set()
    for snapshot in SNAPSHOTS:
        lines = stage_lines(snapshot, width)
        assert len(lines) == 3
        for line in lines:
            bar = [index for index, cell in enumerate(line) if cell in "━─"]
            places.add((bar[0], bar[-1], line.index(" clips/s"), line.index(" worker")))
        text = "".join(lines)
        assert all(f"{number:,} " in text for number in snapshot.passed.values())
        assert all(f"{number:,} worker" in text for number in snapshot.actors.values())
        assert max(map(len, shown(snapshot, width=width))) <= width
    assert len(places) == 1, places


@pytest.mark.parametrize("width", [20, 40, 55])
def test_a_narrow_terminal_cuts_lines_rather_than_wrapping_them(width: int) -> None:
    for snapshot in SNAPSHOTS:
        lines = shown(replace(snapshot, waiting_for=""), width=width)
        assert max(map(len, lines)) <= width
        assert 4 <= len(lines) <= 6


def test_a_terminal_shows_the_whole_job_what_was_rejected_and_the_speed() -> None:
    lines = shown(SNAPSHOT)
    assert "0.6% of ~3,000 clips committed, elapsed 0:42, left 9:54" in lines
    assert "rejected 4: truncated 3, no_video 1" in lines
    assert "encoders busy 95%: as fast as they can go" in lines


def test_a_terminal_shows_what_the_job_waits_for_in_place_of_its_speed() -> None:
    lines = shown(STARTING)
    assert lines[-1] == "starting 2 decode and 1 encode workers (12 s)"
    assert "0.0% of ~3,000 clips committed, elapsed 0:42, left -" in lines
    assert "a long reason a" in " ".join(shown(WAITING, width=80)), "a long note is not cut"


def test_a_bar_shows_the_fraction_done_even_without_colours() -> None:
    decode, _, write = stage_lines(replace(SNAPSHOT, expected=60, total=60), 80)
    assert "━" * 16 + "─" * 8 in decode
    assert "━" * 8 + "─" * 16 in write


def test_a_terminal_without_unicode_gets_plain_bars() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    console = Console(file=stream, force_terminal=True, width=80, color_system=None)
    with ProgressView(console, interval_s=1.0) as view:
        view.show(replace(SNAPSHOT, expected=60, total=60))
    stream.seek(0)
    assert "#" * 16 + "-" * 8 in stream.read()


def test_without_a_terminal_one_line_says_the_same() -> None:
    (line,) = shown(SNAPSHOT, on_terminal=False)
    assert line == (
        "0.6% of ~3,000 clips committed, elapsed 0:42, left 9:54; decode 40 (7.50/s, 3 workers), "
        "encode 30 (3.75/s, 1 worker), write 20 (0.00/s, 1 worker); "
        "rejected 4: truncated 3, no_video 1; encoders busy 95%: as fast as they can go"
    )


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    (line,) = shown(STARTING)
    assert line.endswith("; starting 2 decode and 1 encode workers (12 s)")


def test_one_long_clip_moves_the_lines_with_every_piece() -> None:
    snapshots = Snapshots(ManifestState(CommittedRows(1)), time.monotonic())
    bench, seen, left = Bench(0), [], []
    while not only(Commit, bench.log):
        (one, *_) = sorted(bench.in_flight(), key=lambda one: one.lease.stage == "encode")
        is_decode = one.lease.stage == "decode"
        bench.done(one, *[DecodedInfo(ref, 17, 40) for ref in refs_of(one) if is_decode])
        if one.lease.stage == "encode":
            now = replace(snapshots.take(bench.dispatcher), encoding_s=9.0)
            seen.append(now.pieces[:2])
            left.append(now.left_s)
            assert "━" in stage_lines(now, 80)[1] or now.pieces[0] == 1
            assert now.clips_per_s("encode") > 0 or now.pieces[0] == 1
    assert seen == [*((number, 40) for number in range(1, 40)), (0, 0)]
    assert all(left[1:-1])
    text = replace(SNAPSHOT, pieces=(12, 1_340, 0.01))
    assert "; 12 of 1,340 pieces of long clips encoded; rej" in shown(text, on_terminal=False)[0]
    assert "12 of 1,340 pieces of long clips encoded" in shown(text)


WRITER = """
import sys, time
from rich.console import Console
from tokpipe.runtime.progress import ProgressView, Snapshot
from tokpipe.types import STAGES
none = dict.fromkeys(STAGES, 0)
with ProgressView(Console(highlight=False), 1e9) as view:
    view.show(Snapshot(9, 9, none, none, {}, waiting_for="starting " + "workers " * 20))
    sys.stdin.read()
"""


def test_lines_appear_in_pipes_and_files_while_the_job_runs(tmp_path: Path) -> None:
    env = {**os.environ, "TERM": "dumb", "COLUMNS": "40"}
    command = [sys.executable, "-c", WRITER]
    pipes = {"stdin": subprocess.PIPE, "env": env, "text": True}
    with subprocess.Popen(command, stdout=subprocess.PIPE, **pipes) as piped:  # type: ignore[call-overload]
        line = piped.stdout.readline()
        piped.stdin.close()
    assert line.endswith("workers workers \n")
    path = tmp_path / "log"
    with path.open("w") as file, subprocess.Popen(command, stdout=file, **pipes) as filed:  # type: ignore[call-overload]
        wait_until(lambda: bool(path.read_text()))
        filed.stdin.close()
    assert path.read_text() == line


def test_a_dumb_terminal_wraps_lines_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "40")
    lines = shown(SNAPSHOT, width=40)
    assert max(map(len, lines)) <= 40
    assert " ".join(line.strip() for line in lines) == shown(SNAPSHOT, on_terminal=False)[0]


def test_writing_is_named_as_the_limit() -> None:
    spent = {"decode": 4.0, "encode": 8.0, "write": 9.9}
    lines = shown(replace(SNAPSHOT, recent=Account(spent, UP, clips={"encode": 9})))
    assert "encoders busy 80%, limited by writing (busy 99%)" in lines


def test_a_known_total_is_not_marked_as_an_estimate() -> None:
    text = " ".join(shown(replace(SNAPSHOT, total=3_000, rejected={})))
    assert " of 3,000 clips" in text
    assert "rejected" not in text


def test_the_time_left_counts_rejected_clips_and_waits_for_a_rate() -> None:
    assert replace(SNAPSHOT, encoding_s=4.0).left_s is None
    assert replace(SNAPSHOT, recent=Account()).left_s is None
    rejecting = Account(rejected_at={"decode": 20, "encode": 10})
    assert replace(SNAPSHOT, recent=rejecting).left_s == SNAPSHOT.left_s == 2_970 * 6 / 30
    encoded: dict[Stage, int] = {"decode": 3_000, "encode": 3_000, "write": 2_900}
    assert replace(SNAPSHOT, passed=encoded).left_s is None, "no commit in the last minute"
    recent = Account(clips={"write": 50})
    assert replace(SNAPSHOT, passed=encoded, recent=recent).left_s == 100 * 6 / 50
    done = replace(SNAPSHOT, passed=dict.fromkeys(STAGES, 3_000), recent=Account())
    assert (done.left_s, done.share_done) == (0.0, 1.0)


def test_unopened_rows_are_expected_to_be_like_opened_ones() -> None:
    state = ManifestState(CommittedRows(100))
    refused = Rejected(ClipRef("a", 0, 0, 1, "u"), "decode", "empty", "")
    state.apply(ManifestEntry(0, "w", "now", rejected=(refused,)))
    snapshots = Snapshots(state, time.monotonic())

    def expected(opened: int, extra_clips: int) -> tuple[int, int]:
        dispatcher = Dispatcher(limits(), ref_of)
        dispatcher.out.count("num_opened", opened)
        dispatcher.out.count("num_extra_clips", extra_clips)
        snapshot = snapshots.take(dispatcher)
        return snapshot.total, snapshot.expected

    assert expected(0, 0) == (100, 100)
    assert expected(10, 20) == (120, 120 + 89 * 2)
    assert expected(99, 150) == (250, 250)
    assert expected(101, 150) == (250, 250)  # rows that had to be decoded again


# --- what a job waits for -----------------------------------------------------------------------


def limits(*, on_gpu: bool = False, config: RuntimeConfig | None = None) -> Limits:
    return Limits(config or RuntimeConfig(), on_gpu, 8, 1000, 60.0, 1.0)


class Starting:
    """A dispatcher whose actors start when told to."""

    def __init__(self, limits: Limits, cpus: float, gpus: float = 0.0) -> None:
        self.dispatcher = Dispatcher(limits, ref_of)
        self.actors: dict[Stage, list[int]] = {stage: [] for stage in STAGES}
        commands = self.dispatcher.handle(one_node(cpus, gpus), 0.0)
        for command in commands:
            if isinstance(command, StartActor):
                self.actors[command.stage].append(command.actor)

    def come_up(self, *stages: Stage) -> None:
        for stage in stages:
            for actor in self.actors[stage]:
                self.dispatcher.handle(ActorUp(actor), 0.0)

    def note(self, now: float) -> str:
        return waiting_for(self.dispatcher, now)


def test_workers_that_start_are_no_alarm_however_long_they_take() -> None:
    job = Starting(limits(), cpus=4)
    assert job.note(12.2) == "starting 1 decode, 4 encode and 1 write workers (12 s)"
    job.come_up("decode", "write")
    for actor in job.actors["encode"]:
        job.dispatcher.handle(ActorPlaced(actor, "node"), 0.0)
    assert job.note(240.0) == "starting 4 encode workers (240 s)"
    job.come_up("encode")
    assert job.note(300.0) == ""


def test_a_resource_that_no_node_has_is_named_at_once() -> None:
    job = Starting(limits(on_gpu=True), cpus=4)
    job.come_up("decode", "write")
    assert job.note(1.0) == (
        "no room for encode workers: each requests 1 GPU, and the cluster has 0 in all. "
        "Add nodes (an autoscaler does), or lower runtime.encode.gpus"
    )


def test_encoders_that_fail_to_start_are_not_said_to_lack_gpus() -> None:
    job = Starting(limits(on_gpu=True), cpus=4, gpus=1)
    job.come_up("decode", "write")
    job.dispatcher.handle(ActorLost(job.actors["encode"][0], "raised", "no weights"), 1.0)
    assert job.note(75.0) == "starting encode workers (75 s)"


def test_before_the_cluster_is_known_the_job_starts_workers() -> None:
    parts = Dispatcher(limits(), ref_of)
    note = waiting_for(parts, 0.0)
    assert note == "starting decode, encode and write workers (0 s)"


def test_a_job_that_stops_shows_how_long_that_may_take() -> None:
    job = Starting(limits(), cpus=2)
    job.dispatcher.fleet.num_leased.update(STAGES)
    job.dispatcher.handle(StopRequested(30.0), 100.0)
    job.dispatcher.handle(Tick(), 101.0)
    assert job.note(103.0) == "stopping: committing finished clips, 0:57 at most"


# --- the summary --------------------------------------------------------------------------------

JOB = JobConfig.model_construct(output=OutputConfig(uri="/out/my codes"), max_rejected_fraction=0.5)
OUTCOME = Outcome(
    "done",
    Totals(num_clips=3, num_frames=43, num_codes=3_328, num_shards=1, size_bytes=13_000),
    elapsed_s=180.0,
    encoding_s=120.0,
    num_left=0,
    account=Account(
        {"decode": 98.0, "encode": 59.0},
        {"decode": 100.0, "encode": 100.0, "write": 100.0},
        clips={"write": 60},
        num_frames=1_200,
        paid_s=100.0,
        useful_s=59.0,
    ),
)


def summary(**changes: object) -> Iterator[str]:
    return iter(list(summary_lines(JOB, replace(OUTCOME, **changes))))  # type: ignore[arg-type]


def test_the_summary_says_what_limited_a_job_and_what_to_change() -> None:
    lines = list(summary())
    assert lines[0] == "done after 3:00: /out/my codes"
    assert "  this run: 60 clips at 0.50 clips/s, 10.0 frames/s" in lines
    assert (
        "  encoders busy 59%, limited by decoding (busy 98%). Add CPUs, or lower "
        "runtime.decode.cpus if they were not all busy"
    ) in lines
    assert lines[-1] == "  a page about it: tokpipe report '/out/my codes' -o report.html"


def test_a_short_run_is_not_judged() -> None:
    text = "\n".join(summary(encoding_s=20.0))
    assert "encoding took 0:20, too short to judge the speed" in text
    assert "limited" not in text
    assert "goodput" not in text


def test_the_summary_names_what_made_encoders_slow() -> None:
    account = replace(OUTCOME.account, slow_s={"no compiler": 45.0})
    assert "  slower than possible: no compiler (0:45 of encoding)" in summary(account=account)
    assert "slower" not in "".join(summary())


def test_a_run_with_nothing_to_do_says_so() -> None:
    first, *rest = summary(was_done=True, account=Account())
    assert first == "nothing left to do: 3 clips done before: /out/my codes"
    assert "too short" not in "".join(rest)


def test_a_stopped_run_says_how_to_continue() -> None:
    first, *_, last = summary(ended="stopped", num_left=1)
    assert first == "stopped after 3:00 with 1 plan row left: /out/my codes"
    assert last == "  run the same command again to continue"


def test_a_failed_run_says_so_first_and_last() -> None:
    totals = replace(OUTCOME.totals, rejected=Counter(truncated=5))
    first, *rest, last = summary(totals=totals)
    assert first.startswith("failed after 3:00")
    assert "  5 rejected: truncated 5 (why: tokpipe rejected '/out/my codes')" in rest
    assert last.startswith("failed: 62.5% of the clips are rejected")
    assert last.endswith("run again with --retry-rejected (--reason truncated for those alone)")


def test_a_run_that_stopped_early_says_why_last(monkeypatch: pytest.MonkeyPatch) -> None:
    first, *rest = summary(ended="stopped", why="too thick. The latest:\n  a: missing", num_left=4)
    assert first.startswith("failed after 3:00 with 4 plan rows left")
    assert rest[-2:] == ["failed: too thick. The latest:", "  a: missing"]
    assert "  run the same command again to continue" not in rest
    outcome = replace(OUTCOME, ended="stopped", why="too thick")
    monkeypatch.setattr("tokpipe.runtime.job.run_job", lambda *_, **__: outcome)
    monkeypatch.setattr("tokpipe.cli.arguments.Parsed.load_job", lambda _: JOB)
    monkeypatch.setattr("tokpipe.runtime.submitted.check_output", lambda _: None)
    assert main(["run", "job.yaml"]) == 4
