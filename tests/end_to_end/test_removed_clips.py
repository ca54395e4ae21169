"""Clips that are taken out of an output that a job made, and brought back."""

from pathlib import Path

from tests.end_to_end.jobs import (
    codes_of,
    codes_without_ray,
    files,
    output_of,
    run_without_ray,
    write_job,
    write_video,
)
from tokpipe.audit import Audit
from tokpipe.audit.remove import remove
from tokpipe.config import load_job
from tokpipe.runtime.assemble import JobOutput, RetryRejected


def test_removed_clips_come_back_only_if_asked_and_purged_ones_never(tmp_path: Path) -> None:
    for name in "abc":
        write_video(tmp_path / f"videos/{name}.mp4", seed=ord(name))
    job = write_job(tmp_path / "job.yaml", files(tmp_path / "videos"), str(tmp_path / "out"))
    run_without_ray(load_job(job))
    before, store = codes_of(job), output_of(job).store
    assert before == codes_without_ray(job)

    assert remove(store, source="b.mp4").num_clips == 3
    left = codes_of(job)
    assert left.items() < before.items()
    run_without_ray(load_job(job), extend=True)
    run_without_ray(load_job(job), retry=RetryRejected())
    assert JobOutput(load_job(job)).is_done(RetryRejected())
    assert codes_of(job) == left
    assert not JobOutput(load_job(job)).is_done(RetryRejected("removed"))
    run_without_ray(load_job(job), retry=RetryRejected("removed"))
    assert codes_of(job) == before
    assert "removed" not in output_of(job).totals.rejected

    remove(store, source="b.mp4", purge=True)
    write_video(tmp_path / "videos/d.mp4", seed=4)
    run_without_ray(load_job(job), extend=True)
    run_without_ray(load_job(job), retry=RetryRejected("removed"))
    now = codes_of(job)
    assert left.items() < now.items()
    assert now.keys() == codes_without_ray(job).keys() - (before.keys() - left.keys())
    audit = Audit(store)
    assert audit.is_clean, [*audit.lines()]
    assert not audit.leftovers.num_objects
