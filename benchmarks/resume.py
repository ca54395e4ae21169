"""Takes up an output of millions of committed clips: seconds and memory to the first work item."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from benchmarks.figures import Figure, Result
from benchmarks.processes import measured
from benchmarks.synthetic import job_of_table, write_output
from tokpipe.runtime.assemble import assemble
from tokpipe.runtime.output import look_up
from tokpipe.storage import probe_store

CLIPS = 10_047_000
"""So that 63 entries follow the last checkpoint, as many as ever do, and have to be read."""
LEFT = 1000
MAX_SECONDS = 15.0
MAX_GB = 1.5


def run(quick: bool) -> Iterator[Result]:
    """Seconds and peak memory from opening the output to the first item, without starting Ray."""
    num_clips, per_shard = (CLIPS // 500, 200) if quick else (CLIPS, 1000)
    with TemporaryDirectory() as name:
        write_output(Path(name), num_clips, num_left=LEFT, clips_per_shard=per_shard)
        resuming = measured(_resume, name)
    assert resuming.result == num_clips, "the first item is not the first that is left"
    details = {"clips": num_clips, **resuming.costs}
    yield Figure("resume: time", resuming.seconds, "s", MAX_SECONDS, "lower", details)
    yield Figure("resume: peak memory", resuming.peak_gb, "GB", MAX_GB, "lower", details)


def _resume(folder: str) -> int:
    """What ``run_job`` does with an output that has begun; returns the row of its first item."""
    job = job_of_table(Path(folder))
    output = look_up(job)
    assert output.record is not None
    probe_store(output.store)
    run = assemble(job, output, output.record, Console(quiet=True))
    return run.feed.fetch(1).items[0].row
