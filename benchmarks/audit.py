"""Audits the manifest of millions of clips against their plan: seconds and memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.figures import Figure, Result
from benchmarks.processes import measured
from benchmarks.synthetic import job_of_table, write_output
from tokpipe.audit import audit
from tokpipe.storage import open_store

CLIPS = 10_000_000


def run(quick: bool) -> Iterator[Result]:
    """Seconds and peak memory of ``tokpipe audit --depth manifest``."""
    num_clips, per_shard = (CLIPS // 500, 200) if quick else (CLIPS, 1000)
    with TemporaryDirectory() as name:
        write_output(Path(name), num_clips, clips_per_shard=per_shard)
        auditing = measured(_audit, name)
    assert auditing.result == num_clips
    details = {"clips": num_clips, **auditing.costs}
    yield Figure("audit of a manifest: time", auditing.seconds, "s", details=details)
    yield Figure("audit of a manifest: peak memory", auditing.peak_gb, "GB", details=details)


def _audit(folder: str) -> int:
    job = job_of_table(Path(folder))
    report = audit(open_store(job.output.uri, job.storage), depth="manifest", say=lambda _: None)
    assert report.is_clean, list(report.findings)
    assert report.totals is not None
    return report.totals.num_clips
