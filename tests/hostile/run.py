"""Runs hostile input through planning, through decoding, and through one whole job."""

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.end_to_end.jobs import (
    assert_complete,
    codes_of,
    finish,
    run,
    start,
    write_job,
    write_videos,
)
from tests.end_to_end.processes import pids_of
from tests.hostile.corpus import FPS, REASONS, TOKENIZED, VideoCase
from tests.hostile.memory import DECODER, PeakWatch, peak_bytes, reset_peak
from tests.hostile.tables import TableCase
from tests.videos import numbers_of
from tokpipe.config import load_job
from tokpipe.config.job import JobConfig
from tokpipe.errors import ConfigError
from tokpipe.identity import digest
from tokpipe.plan import PlanReader, write_plan
from tokpipe.reader import open_output
from tokpipe.stages.decode import DecodeStage
from tokpipe.storage import Store
from tokpipe.types import DecodedClip, EncodedClip, Failed, Rejected, WorkItem

DEADLINE_S = 300.0
"""``decode.deadline_s``. No case may end in ``timeout``, which would mean that a decoder hung."""
DECODER_BYTES = 1 << 30
"""``decode.memory_bytes``: memory of the decoding child on top of what it starts with."""
PEAK_BYTES = DECODER_BYTES + (256 << 20)
PLANNING_BYTES = 512 << 20
"""Maximum for planning one hostile table."""
ACTOR_BYTES = 2 << 30
"""Maximum for a driver or an actor."""
NUM_GOOD = 6


@dataclass
class Report:
    """What a run found. A run with ``violations`` has failed."""

    outcomes: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """By family: number of files by the outcome of their worst clip."""
    violations: list[str] = field(default_factory=list)
    peak: tuple[int, str] = (0, "")
    """Bytes of the decoding child, and the case that took them."""
    planning_peak: tuple[int, str] = (0, "")
    job_peaks: dict[str, int] = field(default_factory=dict)
    """Bytes by kind of process of the job."""
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
        yield f"peak of the decoding child: {self.peak[0] >> 20} MiB ({self.peak[1]!r})"
        yield (
            f"planning took at most {self.planning_peak[0] >> 20} MiB more "
            f"({self.planning_peak[1]})"
        )
        for kind, peak in sorted(self.job_peaks.items()):
            yield f"peak of the {kind} of the job: {peak >> 20} MiB"
        yield f"violations: {len(self.violations)}"
        yield from (f"  {problem}" for problem in self.violations)


# Tables.


def plan_tables(cases: Iterable[TableCase], folder: Path, report: Report) -> None:
    """Plan a job over each hostile source: valid rows, or a ``ConfigError``."""
    for case in cases:
        own = folder / case.name.replace(".", "_")
        own.mkdir(parents=True)
        source = case.make(own)
        reset_peak()
        before = peak_bytes()
        outcome, problem = _plan_table(case, _table_job(own, [source]), own)
        taken = peak_bytes() - before
        report.count(case.family, outcome)
        report.planning_peak = max(report.planning_peak, (taken, case.name))
        if taken > PLANNING_BYTES:
            problem = f"planning took {taken >> 20} MiB"
        if problem:
            report.violations.append(f"{case.name}: {problem}")


def _table_job(folder: Path, sources: list[dict[str, Any]]) -> JobConfig:
    job = write_job(folder / "job.yaml", sources, str(folder / "out"), on_duplicate="keep_first")
    return load_job(job)


def _plan_table(case: TableCase, job: JobConfig, folder: Path) -> tuple[str, str | None]:
    """Return the outcome, and what is wrong with it."""
    store = Store(job.output.uri, job.storage)
    try:
        plan = write_plan(job, store, "1")
    except ConfigError as error:
        if not isinstance(case.expected, str):
            return "rejected", f"has rows but was rejected: {error}"
        if not re.search(case.expected, str(error)):
            return "rejected", f"was rejected for another reason: {error}"
        return "rejected", None if len(str(error)) > 40 else f"the message says too little: {error}"
    except Exception as error:
        return "fault", f"planning ended with {type(error).__name__}: {str(error)[:300]}"
    found = (plan.num_rows, plan.num_problems)
    if isinstance(case.expected, str):
        if case.expected:
            return "planned", f"was not rejected for {case.expected!r}"
    elif any(want not in (None, has) for want, has in zip(case.expected, found, strict=True)):
        return "planned", f"{found} rows and unusable rows; not {case.expected}"
    reader = PlanReader(store, plan)
    items = reader.items(range(reader.num_rows))
    extras = reader.extras([item.row for item in items])
    extras.validate(full=True)
    if len(items) != plan.num_rows or extras.num_rows != plan.num_rows:
        return "planned", f"{len(items)} items of {plan.num_rows} rows"
    return "planned", None


# Videos, decoded here.


def corpus_job(folder: Path, cases: Sequence[VideoCase], tables: Sequence[TableCase] = ()) -> Path:
    """Make all cases and some good videos; return a job over all of them."""
    videos = folder / "videos"
    write_videos(videos, NUM_GOOD)
    for case in cases:
        case.make(videos / case.name)
    # Folders are listed only by a pattern with a suffix.
    globs = (f"{videos}/*", f"{videos}/*.mp4")
    sources: list[dict[str, Any]] = [{"kind": "files", "uri": uri} for uri in globs]
    for table in tables:
        own = folder / "tables" / table.name.replace(".", "_")
        own.mkdir(parents=True)
        sources.append(table.make(own))
    return write_job(folder / "job.yaml", sources, str(folder / "out"), **SETTINGS)


SETTINGS: dict[str, Any] = {
    "on_duplicate": "keep_first",
    "frames": {"size": [32, 32], "fit": "stretch"},
    "decode": {"deadline_s": DEADLINE_S, "memory_bytes": DECODER_BYTES},
    "storage": {"deadline_s": 1},
    "max_rejected_fraction": 1.0,
}

Outcomes = dict[str, str]
"""Clip id -> ``tokenized``, or the reason for rejection."""


def decode_corpus(
    job_path: Path, cases: Sequence[VideoCase], report: Report, again_every: int = 3
) -> Outcomes:
    """Plan the job, decode each of its clips in this process, and check the outcomes.

    Every ``again_every``-th item is decoded again, in reverse order, by another child.
    """
    job = load_job(job_path)
    store = Store(f"{job_path.parent}/plan", job.storage)
    reader = PlanReader(store, write_plan(job, store, "1"), job.sources)
    items = reader.items(range(reader.num_rows))
    by_name = {case.name: case for case in cases}
    outcomes: Outcomes = {}
    digests = {}
    stage = DecodeStage(job.sampling, job.frames, job.decode, job.storage)
    stage.setup()
    for item in items:
        for pid in pids_of(DECODER):
            reset_peak(pid)
        clips = _decode(stage, item)
        peak = max(map(peak_bytes, pids_of(DECODER)), default=0)
        name = Path(item.source_uri).name
        case = by_name.get(name)
        report.peak = max(report.peak, (peak, name))
        found = {clip.ref.clip_id: _outcome(clip) for clip in clips}
        outcomes |= found
        digests[item.row] = _digest(clips)
        if case is not None:
            report.count(case.family, _worst(found.values()))
        problem = _problem(case, clips)
        if peak > PEAK_BYTES:
            problem = f"decoding took {peak >> 20} MiB"
        if problem:
            report.violations.append(f"{name}: {problem}")
    stage.close()

    stage.setup()
    for item in items[::-again_every]:
        if _digest(_decode(stage, item)) != digests[item.row]:
            report.violations.append(f"{item.source_uri}: decoding it again returns something else")
        report.num_decoded_twice += 1
    stage.close()
    if missing := by_name.keys() - {Path(item.source_uri).name for item in items}:
        report.violations += [f"{name}: is missing from the plan" for name in missing]
    return outcomes


def _decode(stage: DecodeStage, item: WorkItem) -> list[DecodedClip | Rejected | Failed]:
    """Decode all clips of an item, as a job does: the first one says how many there are."""
    clips = stage.process([item])
    total = clips[0].ref.num_segments
    later = [
        dataclasses.replace(item, segment=segment, num_segments=total)
        for segment in range(1, total)
    ]
    clips += [clip for one in later for clip in stage.process([one])]
    return [clip for clip in clips if not isinstance(clip, EncodedClip)]


def _outcome(clip: DecodedClip | Rejected | Failed) -> str:
    return clip.reason if isinstance(clip, Rejected | Failed) else TOKENIZED


def _worst(outcomes: Iterable[str]) -> str:
    return next((what for what in outcomes if what != TOKENIZED), TOKENIZED)


def _digest(clips: Sequence[DecodedClip | Rejected | Failed]) -> str:
    return digest(
        [
            # The message says how often and how long a server was tried.
            [clip.reason, clip.message if clip.reason != "unreachable" else ""]
            if isinstance(clip, Rejected | Failed)
            else [clip.frames.shape, hash(clip.frames.tobytes()), clip.pts_s.tolist()]
            for clip in clips
        ]
    )


def _problem(
    case: VideoCase | None, clips: Sequence[DecodedClip | Rejected | Failed]
) -> str | None:
    """Return what is wrong with the clips of one row; rows of tables have no case."""
    allowed = REASONS | {TOKENIZED} if case is None else case.allowed
    worst = _worst(map(_outcome, clips))
    if worst not in allowed:
        return f"{worst}, not {sorted(allowed)}: {clips[0]}"[:500]
    for clip in clips:
        if isinstance(clip, Rejected | Failed):
            if clip.reason not in REASONS:
                return f"rejected as {clip.reason}: {clip.message}"
            if len(clip.message) < 15:
                return f"rejected as {clip.reason}, but says too little: {clip.message!r}"
            continue
        if len(clip.frames) == 0 or len(clip.frames) != len(clip.pts_s):
            return f"{len(clip.frames)} frames at {len(clip.pts_s)} times"
        if not (np.all(np.isfinite(clip.pts_s)) and np.all(np.diff(clip.pts_s) >= 0)):
            return f"its times do not increase: {clip.pts_s.tolist()[:20]}"
        if case is not None and case.is_numbered:
            shown, due = numbers_of(clip.frames), np.rint(clip.pts_s * FPS).astype(int).tolist()
            if shown != due:
                return f"shows frames {shown} at the times of {due}"
    return None


# The whole job.


def run_corpus_job(
    job_path: Path, alone: Outcomes, address: str, report: Report, timeout_s: float
) -> None:
    """Run the job and compare its outcomes with those of decoding each clip by itself.

    A second job over the good videos alone must produce the same codes.
    """
    with PeakWatch() as watch:
        code, printed = finish(start(job_path, address), timeout_s)
    report.job_peaks = watch.peaks
    if code != 0:
        report.violations.append(f"the job ended with exit code {code}:\n{printed[-3000:]}")
        return
    assert_complete(job_path)
    config = load_job(job_path)
    output = open_output(config.output.uri, config.storage)
    together = {clip.clip_id: TOKENIZED for clip in output.clips()}
    for rejected in output.rejected():
        if rejected.ref.clip_id in together:
            report.violations.append(f"{rejected.ref}: rejected after it was settled")
        together[rejected.ref.clip_id] = rejected.reason
        if len(rejected.message) < 15:
            report.violations.append(f"{rejected.ref}: says too little: {rejected.message}")
    for clip_id in sorted(alone.keys() | together.keys()):
        if alone.get(clip_id) != together.get(clip_id):
            report.violations.append(
                f"clip {clip_id}: {alone.get(clip_id)} alone, {together.get(clip_id)} in the job"
            )
    for kind, peak in watch.peaks.items():
        if peak > (PEAK_BYTES if kind == "decoding child" else ACTOR_BYTES):
            report.violations.append(f"the {kind} of the job took {peak >> 20} MiB")
    good_job = write_job(
        job_path.parent / "good.yaml",
        {"kind": "files", "uri": f"{job_path.parent}/videos/clip???.mp4"},
        f"{job_path.parent}/good",
        **SETTINGS,
    )
    code, printed = run(good_job, address)
    if code != 0:
        report.violations.append(f"the job over good videos ended with {code}:\n{printed[-3000:]}")
        return
    right, codes = codes_of(good_job), codes_of(job_path)
    if not right or any(codes.get(key) != value for key, value in right.items()):
        report.violations.append("good videos have other codes in a job with bad ones")
