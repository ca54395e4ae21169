"""Runs hostile input through planning, through decoding, and through one whole job."""

from __future__ import annotations

import dataclasses
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.end_to_end.jobs import (
    assert_complete,
    codes_of,
    run,
    write_job,
    write_videos,
)
from tests.hostile.corpus import FPS, REASONS, TOKENIZED, VideoCase
from tests.hostile.memory import PeakWatch, decoding_children, forget_peak, peak_bytes
from tests.hostile.tables import TableCase
from tests.videos import numbers_of
from tokpipe.config import load_job
from tokpipe.config.job import JobConfig
from tokpipe.errors import ConfigError
from tokpipe.identity.ids import digest
from tokpipe.plan import PlanReader, write_plan
from tokpipe.reader import open_output
from tokpipe.stages.decode import DecodeStage
from tokpipe.storage import open_store
from tokpipe.types import DecodedClip, Failed, Rejected, WorkItem

DEADLINE_S = 20.0
"""Of decoding one clip: a case that takes as long was about to hang."""
DECODER_BYTES = 1 << 30
"""``decode.memory_bytes``: what the decoding child may take over its start."""
PEAK_BYTES = DECODER_BYTES + (256 << 20)
PLANNING_BYTES = 512 << 20
"""The most that planning one hostile table may take."""
PLANNING_S = 20.0
ACTOR_BYTES = 2 << 30
"""The most that a driver or an actor may take."""
NUM_GOOD = 6


@dataclass
class Report:
    """What a run found. ``dishonest`` is empty, or the run has failed."""

    outcomes: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """By family: files by what became of their worst clip."""
    dishonest: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")
    """Seconds, and the case that took them."""
    peak: tuple[int, str] = (0, "")
    """Bytes of the decoding child, and the case at which it held them."""
    planning_peak: tuple[int, str] = (0, "")
    job_peaks: dict[str, int] = field(default_factory=dict)
    """Bytes by kind of process of the job."""
    job_s: float = 0.0
    num_decoded_twice: int = 0

    def count(self, family: str, outcome: str) -> None:
        self.outcomes[family][outcome] += 1

    @property
    def num_cases(self) -> int:
        return sum(found.total() for found in self.outcomes.values())

    def lines(self) -> Iterator[str]:
        for family, found in self.outcomes.items():
            parts = ", ".join(f"{what} {count}" for what, count in found.most_common())
            yield f"{family:28} {found.total():5}  {parts}"
        totals: Counter[str] = sum(self.outcomes.values(), Counter())
        ends = ", ".join(f"{what} {count}" for what, count in totals.most_common())
        yield f"{'all':28} {self.num_cases:5}  {ends}"
        yield f"decoded again with the same result: {self.num_decoded_twice}"
        yield f"slowest case: {self.slowest[0]:.2f} s ({self.slowest[1]})"
        yield f"peak of the decoding child: {self.peak[0] >> 20} MiB ({self.peak[1]})"
        yield (
            f"planning took at most {self.planning_peak[0] >> 20} MiB more "
            f"({self.planning_peak[1]})"
        )
        if self.job_s:
            peaks = ", ".join(f"{kind} {n >> 20} MiB" for kind, n in sorted(self.job_peaks.items()))
            yield f"the whole job took {self.job_s:.0f} s; peaks: {peaks}"
        yield f"dishonest: {len(self.dishonest)}"
        yield from (f"  {problem}" for problem in self.dishonest)


# Tables.


def plan_tables(cases: Iterable[TableCase], folder: Path, report: Report) -> None:
    """Plan a job over each hostile source: rows that can be counted on, or a ``ConfigError``."""
    for case in cases:
        own = folder / case.name.replace(".", "_")
        own.mkdir(parents=True)
        source = case.make(own)
        forget_peak()
        before, started = peak_bytes(), time.monotonic()
        outcome, problem = _plan_table(case, _table_job(own, [source]), own)
        seconds, taken = time.monotonic() - started, peak_bytes() - before
        report.count(case.family, outcome)
        report.slowest = max(report.slowest, (seconds, case.name))
        report.planning_peak = max(report.planning_peak, (taken, case.name))
        if taken > PLANNING_BYTES or seconds > PLANNING_S:
            problem = f"planning took {seconds:.1f} s and {taken >> 20} MiB"
        if problem:
            report.dishonest.append(f"{case.name}: {problem}")


def _table_job(folder: Path, sources: list[dict[str, Any]]) -> JobConfig:
    job = write_job(folder / "job.yaml", sources, str(folder / "out"), on_duplicate="keep_first")
    return load_job(job)


def _plan_table(case: TableCase, job: JobConfig, folder: Path) -> tuple[str, str | None]:
    """Return the outcome and, if it is not honest, what is wrong with it."""
    store = open_store(job.output.uri, job.storage)
    try:
        plan = write_plan(job, store, "1")
    except ConfigError as error:
        if case.refused is None:
            return "refused", f"has rows and was refused: {error}"
        if not re.search(case.refused, str(error)):
            return "refused", f"was refused for another reason: {error}"
        return "refused", None if len(str(error)) > 40 else f"says too little: {error}"
    except Exception as error:
        return "fault", f"planning ended with {type(error).__name__}: {str(error)[:300]}"
    if case.refused:
        return "planned", f"was not refused for {case.refused!r}"
    for wanted, found in ((case.num_rows, plan.num_rows), (case.num_problems, plan.num_problems)):
        if wanted is not None and wanted != found:
            return "planned", f"{plan.num_rows} rows, {plan.num_problems} unusable; not {wanted}"
    reader = PlanReader(store, plan)
    items = [item for part in range(reader.num_parts) for item in reader.items(part)]
    extras = reader.extras([item.row for item in items])
    extras.validate(full=True)
    if len(items) != plan.num_rows or extras.num_rows != plan.num_rows:
        return "planned", f"{len(items)} items of {plan.num_rows} rows"
    return "planned", None


# Videos, decoded here.


def corpus_job(folder: Path, cases: Sequence[VideoCase], tables: Sequence[TableCase] = ()) -> Path:
    """Make every case, and good videos between them; return a job over all of them."""
    videos = folder / "videos"
    write_videos(videos, NUM_GOOD)
    for case in cases:
        case.make(videos / case.name)
    # A folder is listed only where the pattern asks for a suffix, as videos have one.
    globs = (f"{videos}/*", f"{videos}/*.mp4")
    sources: list[dict[str, Any]] = [{"kind": "files", "uri": uri} for uri in globs]
    for table in tables:
        own = folder / "tables" / table.name.replace(".", "_")
        own.mkdir(parents=True)
        sources.append(table.make(own))
    return write_job(folder / "job.yaml", sources, str(folder / "out"), **_SETTINGS)


_SETTINGS: dict[str, Any] = {
    "on_duplicate": "keep_first",
    "frames": {"size": [32, 32], "fit": "stretch"},
    "decode": {"deadline_s": DEADLINE_S, "memory_bytes": DECODER_BYTES},
    "storage": {"deadline_s": 5},
    "max_rejected_fraction": 1.0,
}

Outcomes = dict[str, str]
"""Clip id -> ``tokenized``, or the reason for which it is rejected."""


def decode_corpus(
    job_path: Path, cases: Sequence[VideoCase], report: Report, again_every: int = 3
) -> Outcomes:
    """Plan the job, decode every clip of it in this process, and judge what comes of each case.

    Every ``again_every``-th item is decoded again, backwards, by another child.
    """
    job = load_job(job_path)
    scratch = job_path.parent / "scratch"
    scratch.mkdir()
    store = open_store(f"{job_path.parent}/plan", job.storage)
    reader = PlanReader(store, write_plan(job, store, "1"))
    items = [item for part in range(reader.num_parts) for item in reader.items(part)]
    by_name = {case.name: case for case in cases}
    outcomes: Outcomes = {}
    digests = {}
    stage = DecodeStage(job.sampling, job.frames, job.decode, job.storage)
    stage.setup(scratch)
    for item in items:
        for pid in decoding_children():
            forget_peak(pid)
        started = time.monotonic()
        clips = _decode(stage, item)
        seconds = time.monotonic() - started
        peak = max(map(peak_bytes, decoding_children()), default=0)
        name = Path(item.source_uri).name
        case = by_name.get(name)
        report.slowest = max(report.slowest, (seconds, name))
        report.peak = max(report.peak, (peak, name))
        found = {clip.ref.clip_id: _outcome(clip) for clip in clips}
        outcomes |= found
        digests[item.row] = _digest(clips)
        if case is not None:
            report.count(case.family, _worst(found.values()))
        problem = _problem(case, clips)
        if peak > PEAK_BYTES or seconds > DEADLINE_S:
            problem = f"decoding took {seconds:.1f} s and {peak >> 20} MiB"
        if problem:
            report.dishonest.append(f"{name}: {problem}")
    stage.close()

    stage.setup(scratch)
    for item in items[::-again_every]:
        if _digest(_decode(stage, item)) != digests[item.row]:
            report.dishonest.append(f"{item.source_uri}: decoded again, it gives something else")
        report.num_decoded_twice += 1
    stage.close()
    if missing := by_name.keys() - {Path(item.source_uri).name for item in items}:
        report.dishonest += [f"{name}: was made and is not in the plan" for name in missing]
    return outcomes


def _decode(stage: DecodeStage, item: WorkItem) -> list[DecodedClip | Rejected | Failed]:
    """Decode all clips of an item, as a job does: the first one says how many there are."""
    clips = stage.process([item])
    total = clips[0].ref.num_segments
    later = [
        dataclasses.replace(item, segment=segment, num_segments=total)
        for segment in range(1, total)
    ]
    return clips + [clip for one in later for clip in stage.process([one])]


def _outcome(clip: DecodedClip | Rejected | Failed) -> str:
    return clip.reason if isinstance(clip, Rejected | Failed) else TOKENIZED


def _worst(outcomes: Iterable[str]) -> str:
    return next((what for what in outcomes if what != TOKENIZED), TOKENIZED)


def _digest(clips: Sequence[DecodedClip | Rejected | Failed]) -> str:
    return digest(
        [
            # How often a server was tried, and for how long, is in the message.
            [clip.reason, clip.message if clip.reason != "unreachable" else ""]
            if isinstance(clip, Rejected | Failed)
            else [clip.frames.shape, hash(clip.frames.tobytes()), clip.pts_s.tolist()]
            for clip in clips
        ]
    )


def _problem(
    case: VideoCase | None, clips: Sequence[DecodedClip | Rejected | Failed]
) -> str | None:
    """Say what is not honest about the clips of one row; rows of tables have no case."""
    honest = REASONS | {TOKENIZED} if case is None else case.honest
    worst = _worst(map(_outcome, clips))
    if worst not in honest:
        return f"{worst}, not {sorted(honest)}: {clips[0]}"[:500]
    for clip in clips:
        if isinstance(clip, Rejected | Failed):
            if clip.reason not in REASONS:
                return f"rejected as {clip.reason}: {clip.message}"
            if len(clip.message) < 15:
                return f"rejected as {clip.reason} with no more words than {clip.message!r}"
            continue
        if len(clip.frames) == 0 or len(clip.frames) != len(clip.pts_s):
            return f"{len(clip.frames)} frames at {len(clip.pts_s)} times"
        if not (np.all(np.isfinite(clip.pts_s)) and np.all(np.diff(clip.pts_s) >= 0)):
            return f"its times do not ascend: {clip.pts_s.tolist()[:20]}"
        if case is not None and case.is_numbered:
            shown, due = numbers_of(clip.frames), np.rint(clip.pts_s * FPS).astype(int).tolist()
            if shown != due:
                return f"shows frames {shown} at the times of {due}"
    return None


# The whole job.


def run_corpus_job(
    job_path: Path, alone: Outcomes, address: str, report: Report, timeout_s: float
) -> None:
    """Run the job and compare it with what decoding each clip by itself gave.

    The good videos are also run by a job of their own, whose codes must be the same.
    """
    started = time.monotonic()
    with PeakWatch() as watch:
        code, printed = run(job_path, address, timeout_s)
    report.job_s, report.job_peaks = time.monotonic() - started, watch.peaks
    if code != 0:
        report.dishonest.append(f"the job ended with exit code {code}:\n{printed[-3000:]}")
        return
    assert_complete(job_path)
    config = load_job(job_path)
    output = open_output(config.output.uri, config.storage)
    together = {clip.clip_id: TOKENIZED for clip in output.clips()}
    for rejected in output.rejected():
        if rejected.ref.clip_id in together:
            report.dishonest.append(f"{rejected.ref}: rejected, and settled before")
        together[rejected.ref.clip_id] = rejected.reason
        if len(rejected.message) < 15:
            report.dishonest.append(f"{rejected.ref}: rejected without a word: {rejected.message}")
    for clip_id in sorted(alone.keys() | together.keys()):
        if alone.get(clip_id) != together.get(clip_id):
            report.dishonest.append(
                f"clip {clip_id}: {alone.get(clip_id)} alone, {together.get(clip_id)} in the job"
            )
    for kind, peak in watch.peaks.items():
        if peak > (PEAK_BYTES if kind == "decoding child" else ACTOR_BYTES):
            report.dishonest.append(f"the {kind} of the job took {peak >> 20} MiB")
    good_job = write_job(
        job_path.parent / "good.yaml",
        {"kind": "files", "uri": f"{job_path.parent}/videos/clip???.mp4"},
        f"{job_path.parent}/good",
        **_SETTINGS,
    )
    code, printed = run(good_job, address)
    if code != 0:
        report.dishonest.append(f"the job over good videos ended with {code}:\n{printed[-3000:]}")
        return
    right, codes = codes_of(good_job), codes_of(job_path)
    if not right or any(codes.get(key) != value for key, value in right.items()):
        report.dishonest.append("good videos among bad ones got other codes than by themselves")
