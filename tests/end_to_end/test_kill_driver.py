"""The driver killed with SIGKILL at ten moments of one job, and started again each time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.end_to_end.jobs import (
    assert_complete,
    codes_of,
    files,
    finish,
    kill,
    num_entries,
    run_well,
    start,
    wait_until,
    write_job,
    write_videos,
)


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_ten_kills_of_the_driver_lose_and_double_nothing(tmp_path: Path, ray_address: str) -> None:
    write_videos(tmp_path / "videos", 32)
    undisturbed = write_job(tmp_path / "a.yaml", files(tmp_path / "videos"), str(tmp_path / "a"))
    job = write_job(tmp_path / "b.yaml", files(tmp_path / "videos"), str(tmp_path / "b"))
    run_well(undisturbed, ray_address)

    output = tmp_path / "b"

    def planned() -> bool:
        return any(output.glob("plan/*/*"))

    def recorded() -> bool:
        return (output / "job.json").exists()

    def committed(more: int) -> Callable[[], bool]:
        before = num_entries(job)
        return lambda: num_entries(job) >= before + more

    def written() -> Callable[[], bool]:
        """A shard has been put, and is not listed yet."""
        before = len(list(output.glob("shards/*.parquet")))
        return lambda: len(list(output.glob("shards/*.parquet"))) > before

    moments: list[Callable[[], Callable[[], bool]]] = [
        lambda: _elapsed(0.5),
        lambda: _elapsed(2.0),
        lambda: planned,
        lambda: recorded,
        lambda: committed(1),
        written,
        lambda: committed(1),
        lambda: committed(2),
        written,
        lambda: committed(2),
    ]
    for moment in moments:
        kill_at(moment, job, ray_address)

    run_well(job, ray_address)
    assert_complete(job)
    assert codes_of(job) == codes_of(undisturbed)
    again = run_well(job, ray_address)
    assert "done" in again


def kill_at(moment: Callable[[], Callable[[], bool]], job: Path, ray_address: str) -> None:
    """Run a driver up to a moment and kill it there."""
    driver = start(job, ray_address)
    reached = moment()
    wait_until(lambda: reached() or driver.poll() is not None)
    assert driver.poll() is None, f"ended before it could be killed: {finish(driver)}"
    kill(driver)


def _elapsed(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end
