"""What people see while a job runs: a line per stage on a terminal, else a line now and then."""

import time
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tokpipe.runtime.snapshot import Snapshot
from tokpipe.telemetry.human import counts_text, duration
from tokpipe.telemetry.logs import events_are_logged, log_event
from tokpipe.telemetry.redact import redact
from tokpipe.telemetry.speed import speed_of, speed_text
from tokpipe.types import STAGES, Stage

BAR_WIDTH = 24
NO_ACTOR_S = 60.0
"""A stage without an actor for this long is reported: the cluster may lack room for one."""


class ProgressView:
    """Live lines on a terminal; elsewhere one plain line every ``interval_s`` seconds."""

    def __init__(self, console: Console, interval_s: float) -> None:
        self.console = console
        self.interval_s = interval_s
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._next_line = 0.0
        self._had_actors: dict[Stage, float] = dict.fromkeys(STAGES, time.monotonic())

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, message: str) -> None:
        """Print one line above the live ones."""
        self.console.print(redact(message), highlight=False, soft_wrap=True, markup=False)

    def show(self, snapshot: Snapshot) -> None:
        if self._live is not None:
            lines = _rejected_line(snapshot), Text(_speed_text(snapshot))
            self._live.update(Group(self._table(snapshot), *filter(None, lines)), refresh=True)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + self.interval_s
            self.say(self._line(snapshot))

    def _table(self, snapshot: Snapshot) -> Table:
        table = Table.grid(padding=(0, 2))
        for justify in ("left", "left", "right", "right", "right", "right"):
            table.add_column(justify=justify, no_wrap=True)
        for stage in STAGES:
            done, rate = snapshot.passed[stage], snapshot.clips_per_s(stage)
            table.add_row(
                Text(stage, style="bold"),
                _bar(done, snapshot.expected),
                f"{done:,}/{_total(snapshot)}",
                f"{rate:,.1f} clips/s",
                f"ETA {_eta(snapshot.expected - done, rate)}",
                f"{(count := snapshot.actors[stage])} actor{'' if count == 1 else 's'}",
            )
        if idle := self._idle_stages(snapshot):
            table.add_row(Text("waiting", style="yellow"), Text(_no_room(idle)))
        return table

    def _idle_stages(self, snapshot: Snapshot) -> list[Stage]:
        """Stages that have had no actor for NO_ACTOR_S."""
        now = time.monotonic()
        for stage in STAGES:
            if snapshot.actors[stage]:
                self._had_actors[stage] = now
        return [stage for stage in STAGES if now - self._had_actors[stage] > NO_ACTOR_S]

    def _line(self, snapshot: Snapshot) -> str:
        parts = [
            f"{stage} {snapshot.passed[stage]:,} ({snapshot.clips_per_s(stage):,.1f}/s, "
            f"{snapshot.actors[stage]} actors)"
            for stage in STAGES
        ]
        eta = _eta(snapshot.expected - snapshot.passed["write"], snapshot.clips_per_s("write"))
        idle = self._idle_stages(snapshot)
        notes = filter(None, [eta, _speed_text(snapshot), _no_room(idle)])
        goodput = snapshot.run.goodput
        return (
            f"of {_total(snapshot)} clips: {', '.join(parts)}, rejected {snapshot.num_rejected:,}, "
            f"{'' if goodput is None else f'goodput {goodput:.0%}, '}ETA {'; '.join(notes)}"
        )


def _rejected_line(snapshot: Snapshot) -> Text:
    """How many clips are rejected and why; empty if none are."""
    line = Text(no_wrap=True, overflow="ellipsis")
    if snapshot.rejected:
        reasons = counts_text(snapshot.rejected)
        line.append("rejected", style="yellow").append(f" {snapshot.num_rejected:,}: {reasons}")
    return line


def _speed_text(snapshot: Snapshot) -> str:
    """How close the last minute was to the encoders' speed; empty before there are any."""
    speed = speed_of(snapshot.recent)
    return "" if speed is None else speed_text(speed)


def _total(snapshot: Snapshot) -> str:
    """All clips; with ``~`` if it is an estimate from the sources opened so far."""
    return f"{'~' if snapshot.expected > snapshot.total else ''}{snapshot.expected:,}"


class ProgressLog:
    """Logs a ``progress`` event every ``interval_s`` seconds."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._next = 0.0

    def show(self, snapshot: Snapshot) -> None:
        now = time.monotonic()
        if now < self._next or not events_are_logged():
            return
        self._next = now + self._interval_s
        speed, run = speed_of(snapshot.recent), snapshot.run
        log_event(
            "progress",
            f"{snapshot.num_rows_done:,} of {snapshot.num_rows:,} plan rows are settled",
            num_rows=snapshot.num_rows,
            num_rows_done=snapshot.num_rows_done,
            clips=run.clips,
            num_frames=run.num_frames,
            num_codes=run.num_codes,
            written_bytes=run.written_bytes,
            num_rejected=sum(run.rejected.values()),
            actors=snapshot.actors,
            goodput=run.goodput,
            speed_of_light=None if speed is None else round(speed.share, 4),
            limit=None if speed is None else speed.limit,
        )


def _no_room(stages: list[Stage]) -> str:
    if not stages:
        return ""
    return f"no {' or '.join(stages)} actor is up: the cluster may lack CPUs or GPUs for one"


def _bar(done: int, total: int) -> Text:
    filled = BAR_WIDTH * min(done, total) // total if total else BAR_WIDTH
    return Text.assemble(("━" * filled, "green"), ("━" * (BAR_WIDTH - filled), "bright_black"))


def _eta(left: int, rate: float) -> str:
    if left <= 0:
        return "0:00"
    return duration(left / rate) if rate > 0 else "-"
