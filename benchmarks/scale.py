"""Jobs of 10 million clips: seconds and memory to plan, resume and audit them.

Each measured function imports what it needs, since a process's memory includes its modules.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.figures import Figure, Result
from benchmarks.processes import Measured, measured
from benchmarks.synthetic import job_of_table, write_output, write_table
from tokpipe.plan import write_plan
from tokpipe.storage import Store, probe_store

CLIPS = 10_000_000
RESUMED_CLIPS = 10_239_000
"""So that 255 manifest entries, the most there can be, follow the last checkpoint and are read."""
ENTRIES = 200_000
"""Of a long manifest: 100 million clips in shards of 500."""


def plan(quick: bool) -> Iterator[Result]:
    """Plan a Parquet table of URIs and captions, which is written beforehand."""
    num_clips = CLIPS // 100 if quick else CLIPS
    with TemporaryDirectory() as name:
        write_table(Path(name) / "clips.parquet", num_clips)
        yield from _figures("plan", measured(_plan, name), num_clips, 60.0, 1.0)


def resume(quick: bool) -> Iterator[Result]:
    """From opening the output to the first item, without starting Ray."""
    num_clips, per_shard = (RESUMED_CLIPS // 500, 200) if quick else (RESUMED_CLIPS, 1000)
    with TemporaryDirectory() as name:
        write_output(Path(name), num_clips, num_left=1000, clips_per_shard=per_shard)
        yield from _figures("resume", measured(_resume, name), num_clips, 15.0, 1.5)
    entries, per_shard = ENTRIES // 100 if quick else ENTRIES, 10
    with TemporaryDirectory() as name:
        write_output(Path(name), entries * per_shard, clips_per_shard=per_shard)
        run = measured(_open, name)
        yield from _figures(f"opening {entries:,} entries", run, entries * per_shard)


def extend(quick: bool) -> Iterator[Result]:
    """A complete output, whose table has 1 % more rows now, up to the first of the new items."""
    num_clips, per_shard = (CLIPS // 100, 200) if quick else (CLIPS, 1000)
    with TemporaryDirectory() as name:
        write_output(Path(name), num_clips, clips_per_shard=per_shard)
        plan = measured(_plan, name)
        write_table(Path(name) / "clips.parquet", num_clips + num_clips // 100)
        run = measured(_extend, name)
        first_row, num_requests = run.result
        assert first_row == num_clips
        details = {"clips": num_clips, "planning them all anew, s": plan.seconds, **run.costs}
        yield Figure("extend by 1 %: time", run.seconds, "s", details=details)
        yield Figure("extend by 1 %: peak memory", run.peak_gb, "GB")
        yield Figure("extend by 1 %: requests", num_requests, "requests")


def audit(quick: bool) -> Iterator[Result]:
    """``tokpipe audit --depth manifest``."""
    num_clips, per_shard = (CLIPS // 500, 200) if quick else (CLIPS, 1000)
    with TemporaryDirectory() as name:
        write_output(Path(name), num_clips, clips_per_shard=per_shard)
        yield from _figures("audit of a manifest", measured(_audit, name), num_clips)


def _figures(
    what: str,
    run: Measured[int],
    num_clips: int,
    max_seconds: float | None = None,
    max_gb: float | None = None,
) -> Iterator[Result]:
    assert run.result == num_clips
    details = {"clips": num_clips, **run.costs}
    yield Figure(f"{what}: time", run.seconds, "s", max_seconds, "lower", details)
    yield Figure(f"{what}: peak memory", run.peak_gb, "GB", max_gb, "lower", details)


def _plan(folder: str) -> int:
    job = job_of_table(Path(folder))
    return write_plan(job, Store(job.output.uri, job.storage), "driver").num_rows


def _resume(folder: str) -> int:
    """What ``run_job`` does with an output that has begun; return the row of its first item."""
    from rich.console import Console

    from tokpipe.runtime.assemble import JobOutput, Run

    job = job_of_table(Path(folder))
    output = JobOutput(job)
    assert output.record is not None
    probe_store(output.store)
    run = Run(output, Console(quiet=True))
    return run.feed.fetch(1).items[0].row


def _extend(folder: str) -> tuple[int, int]:
    """What ``run_job`` does to extend; return the row of its first item, and calls to the store."""
    from rich.console import Console

    from benchmarks.requests import counted
    from tokpipe.runtime.assemble import JobOutput, Run

    with counted(f"{folder}/out") as counts:
        output = JobOutput(job_of_table(Path(folder)), extend=True)
        run = Run(output, Console(quiet=True))
        row = run.feed.fetch(1).items[0].row
    return row, counts.total()


def _open(folder: str) -> int:
    from tokpipe.reader import open_output

    return open_output(f"{folder}/out").num_clips


def _audit(folder: str) -> int:
    from tokpipe.audit import Audit

    job = job_of_table(Path(folder))
    store = Store(job.output.uri, job.storage)
    report = Audit(store, depth="manifest")
    assert report.is_clean, list(report.findings)
    assert report.totals is not None
    return report.totals.num_clips
