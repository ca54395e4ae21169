"""Plans millions of clips from a Parquet table of URIs and captions: seconds and memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.figures import Figure, Result
from benchmarks.processes import measured
from benchmarks.synthetic import job_of_table, write_table
from tokpipe.plan import write_plan
from tokpipe.storage import open_store

CLIPS = 10_000_000
MAX_SECONDS = 60.0
MAX_GB = 1.0


def run(quick: bool) -> Iterator[Result]:
    """Seconds and peak memory of planning, the table's making left out."""
    num_clips = CLIPS // 100 if quick else CLIPS
    with TemporaryDirectory() as name:
        write_table(Path(name) / "clips.parquet", num_clips)
        planning = measured(_plan, name)
    assert planning.result == num_clips
    details = {"clips": num_clips, **planning.costs}
    yield Figure("plan: time", planning.seconds, "s", MAX_SECONDS, "lower", details)
    yield Figure("plan: peak memory", planning.peak_gb, "GB", MAX_GB, "lower", details)


def _plan(folder: str) -> int:
    job = job_of_table(Path(folder))
    return write_plan(job, open_store(job.output.uri, job.storage), "driver").num_rows
