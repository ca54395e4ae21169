"""The state of a job at one moment: what progress lines, logs and metrics all tell."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from tokpipe.formats.manifest import ManifestState
from tokpipe.runtime.dispatch import Dispatcher
from tokpipe.runtime.usage import Usage
from tokpipe.telemetry.speed import RecentSeconds, Seconds
from tokpipe.types import STAGES, Stage

RECENT_S = 60.0
"""Rates are over the last minute, so that a slow start does not spoil the ETA for hours."""


@dataclass(frozen=True, slots=True)
class RunCounts:
    """What this run alone has done so far."""

    clips: Mapping[Stage, int] = field(default_factory=dict)
    """Clips that each stage has made something of; for ``write``, the committed ones."""
    num_frames: int = 0
    """Of committed clips, as are codes and bytes written."""
    num_codes: int = 0
    written_bytes: int = 0
    num_shards: int = 0
    num_commits: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    """Committed rejections by reason."""
    download_bytes: int = 0
    seconds: Seconds = field(default_factory=Seconds)
    """What actors have spent."""
    lost_actors: Mapping[Stage, int] = field(default_factory=dict)
    num_lost_nodes: int = 0
    retried: Mapping[Stage, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a job at one moment."""

    total: int
    """Clips that the plan is known to hold by now."""
    expected: int
    """Clips that it will turn out to hold, if the rows which nobody has opened yet are cut into as
    many as the others."""
    passed: Mapping[Stage, int]
    """Clips that each stage is done with, earlier runs included."""
    actors: Mapping[Stage, int]
    rejected: Mapping[str, int]
    """Rejected clips of the output by reason."""
    goodput: float | None = None
    """Share of the encoders' seconds of this run that went into committed codes."""
    recent: Seconds = field(default_factory=Seconds)
    """What actors spent over the last RECENT_S."""
    num_rows: int = 0
    num_rows_done: int = 0
    """Rows of the plan of which every clip is tokenized or rejected."""
    run: RunCounts = field(default_factory=RunCounts)

    @property
    def num_rejected(self) -> int:
        return sum(self.rejected.values())


class Snapshots:
    """Takes them, of a run that begins with an output as it is now."""

    def __init__(self, state: ManifestState) -> None:
        self._state = state
        self._before = copy.deepcopy(state.totals)
        self._seq_before = state.next_seq
        self._unopened_before, self._left_before = _rows_and_clips_left(state)
        self._recent = RecentSeconds(RECENT_S)

    def take(self, dispatcher: Dispatcher, usage: Usage) -> Snapshot:
        """Look at everything once."""
        state, before, progress = self._state, self._before, dispatcher.progress
        totals = state.totals
        settled_before = before.num_clips + before.num_rejected
        seconds = Seconds(dict(progress.spent), dict(usage.up_s))
        total = settled_before + self._left_before + progress.extra_clips
        unopened = max(0, self._unopened_before - progress.opened)
        rejected = dict(totals.rejected)  # in one go: commits are counted by another thread
        return Snapshot(
            total=total,
            expected=total + round(unopened * progress.extra_clips / max(1, progress.opened)),
            passed={stage: settled_before + progress.passed(stage) for stage in STAGES},
            actors={stage: dispatcher.fleet.num_up(stage) for stage in STAGES},
            rejected=rejected,
            goodput=usage.goodput(progress.useful_s),
            recent=self._recent.add(time.monotonic(), seconds),
            num_rows=state.committed.num_rows,
            num_rows_done=state.committed.num_done,
            run=RunCounts(
                clips={
                    "decode": progress.decoded,
                    "encode": progress.encoded,
                    "write": totals.num_clips - before.num_clips,
                },
                num_frames=totals.num_frames - before.num_frames,
                num_codes=totals.num_codes - before.num_codes,
                written_bytes=totals.size_bytes - before.size_bytes,
                num_shards=totals.num_shards - before.num_shards,
                num_commits=state.next_seq - self._seq_before,
                rejected={one: n - before.rejected[one] for one, n in rejected.items()},
                download_bytes=progress.download_bytes,
                seconds=seconds,
                lost_actors=dict(progress.lost_actors),
                num_lost_nodes=len(progress.lost_nodes),
                retried=dict(progress.retried),
            ),
        )


def _rows_and_clips_left(state: ManifestState) -> tuple[int, int]:
    """Rows that were never opened, and clips that are known to be left: one for each of these, and
    the missing ones of cut rows."""
    committed = state.committed
    untouched = committed.num_rows - committed.num_done - len(committed.partial)
    missing = sum(row.num_segments - len(row.done) for row in committed.partial.values())
    return untouched, untouched + missing
