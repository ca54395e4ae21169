"""What people see while a job runs: a line per stage on a terminal, else a line now and then."""

import time
from collections.abc import Iterator
from contextlib import ExitStack

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from tokpipe.runtime.console import say
from tokpipe.runtime.snapshot import Snapshot
from tokpipe.telemetry.human import counted, counts_text, duration, rate_text, share_text
from tokpipe.telemetry.logs import log_event
from tokpipe.telemetry.redact import printable
from tokpipe.types import STAGES

COLUMNS_WIDTH = 56  # Cells of a stage's line beside its bar; fixed, so that nothing moves
MAX_BAR_WIDTH = 40
MIN_LIMIT_S = 10.0  # Seconds of encoders before a limit is named: the first leases say little


class ProgressView(ExitStack):
    """Live lines on a terminal; elsewhere, and for the log, a line every ``interval_s`` seconds."""

    def __init__(self, console: Console, interval_s: float) -> None:
        super().__init__()
        self.console = console
        self.interval_s = interval_s
        self._live: Live | None = None
        if console.is_interactive:
            self._live = self.enter_context(Live(console=console, auto_refresh=False))
        self._next_line = 0.0

    def show(self, snapshot: Snapshot) -> None:
        if self._live is not None:
            self._live.update(Group(*self._lines(snapshot)), refresh=True)
        if (now := time.monotonic()) >= self._next_line:
            self._next_line = now + self.interval_s
            _log(snapshot)
            if self._live is None:
                say(self.console, _plain_line(snapshot))

    def _lines(self, snapshot: Snapshot) -> Iterator[Text]:
        width = max(0, min(MAX_BAR_WIDTH, self.console.width - COLUMNS_WIDTH))
        done, rest = "#-" if self.console.options.ascii_only else "━─"
        for stage in STAGES:
            passed, workers = snapshot.passed[stage], snapshot.actors[stage]
            share = (passed + (stage == "encode") * snapshot.pieces[2]) / max(1, snapshot.expected)
            filled = int(width * min(1.0, share))
            yield Text.assemble(
                (f"{stage:<8}", "bold"),
                (done * filled, "green"),
                (rest * (width - filled), "bright_black"),
                f"{passed:>13,}{rate_text(snapshot.clips_per_s(stage)):>11} clips/s",
                f"{workers:>8,} worker{'' if workers == 1 else 's'}",
                no_wrap=True,
                overflow="crop",
            )
        speed = "" if snapshot.waiting_for else _speed_text(snapshot)
        for text in filter(None, [_job_text(snapshot), _pieces_text(snapshot), speed]):
            yield Text(text, no_wrap=True, overflow="ellipsis")
        if snapshot.waiting_for:
            yield Text(printable(snapshot.waiting_for), style="yellow")  # wraps, as it may be long
        if snapshot.rejected:
            line = Text(printable(_rejected_text(snapshot)), no_wrap=True, overflow="ellipsis")
            line.stylize("yellow", 0, len("rejected"))
            yield line


def _plain_line(snapshot: Snapshot) -> str:
    stages = ", ".join(
        f"{stage} {snapshot.passed[stage]:,} ({rate_text(snapshot.clips_per_s(stage))}/s, "
        f"{counted(snapshot.actors[stage], 'worker')})"
        for stage in STAGES
        if any(snapshot.actors.values())
    )
    notes = _rejected_text(snapshot), snapshot.waiting_for or _speed_text(snapshot)
    return "; ".join(filter(None, [_job_text(snapshot), stages, _pieces_text(snapshot), *notes]))


def _job_text(snapshot: Snapshot) -> str:
    """How far the whole job is. The total has ``~`` if it is estimated from opened sources."""
    about = "~" if snapshot.expected > snapshot.total else ""
    left = "-" if snapshot.left_s is None else duration(snapshot.left_s)
    share = share_text(snapshot.share_done)
    total = f"{about}{counted(snapshot.expected, 'clip')}"
    return f"{share} of {total} committed, elapsed {duration(snapshot.elapsed_s)}, left {left}"


def _pieces_text(snapshot: Snapshot) -> str:
    encoded, total, _ = snapshot.pieces
    return f"{encoded:,} of {total:,} pieces of long clips encoded" if total else ""


def _rejected_text(snapshot: Snapshot) -> str:
    if not snapshot.rejected:
        return ""
    return f"rejected {sum(snapshot.rejected.values()):,}: {counts_text(snapshot.rejected)}"


def _speed_text(snapshot: Snapshot) -> str:
    """How close the last minute was to the encoders' speed; empty while too little is known."""
    speed = snapshot.recent.speed
    if speed is None or snapshot.recent.up_s["encode"] < MIN_LIMIT_S:
        return ""
    return speed.text


def _log(snapshot: Snapshot) -> None:
    speed, run = snapshot.recent.speed, snapshot.run
    names = ("clips", "num_frames", "num_codes", "written_bytes", "goodput")
    log_event(
        "progress",
        f"{snapshot.num_rows_done:,} of {snapshot.num_rows:,} plan rows are settled",
        **{name: getattr(snapshot, name) for name in ("num_rows", "num_rows_done", "actors")},
        **{name: getattr(run, name) for name in names},
        pieces_encoded=snapshot.pieces[0],
        num_pieces=snapshot.pieces[1],
        num_rejected=sum(run.rejected.values()),
        speed_of_light=None if speed is None else round(speed.share, 4),
        limit=None if speed is None else speed.limit,
        share_done=round(snapshot.share_done, 4),
        elapsed_s=round(snapshot.elapsed_s, 1),
        left_s=None if snapshot.left_s is None else round(snapshot.left_s, 1),
        waiting_for=snapshot.waiting_for or None,
    )
