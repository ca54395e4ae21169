"""Workers of every kind killed with SIGKILL in the middle of a job."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.end_to_end.jobs import (
    assert_complete,
    codes_of,
    files,
    finish,
    num_entries,
    run_well,
    start,
    wait_until,
    write_job,
    write_videos,
)
from tests.end_to_end.processes import pids_of


def _wait_for_a_commit(job: Path, driver: subprocess.Popen[str]) -> None:
    before = num_entries(job)
    wait_until(lambda: num_entries(job) > before or driver.poll() is not None)


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_killed_workers_are_replaced_and_their_clips_made_once(
    tmp_path: Path, ray_address: str
) -> None:
    write_videos(tmp_path / "videos", 24)
    undisturbed = write_job(tmp_path / "a.yaml", files(tmp_path / "videos"), str(tmp_path / "a"))
    job = write_job(tmp_path / "b.yaml", files(tmp_path / "videos"), str(tmp_path / "b"))
    run_well(undisturbed, ray_address)

    driver = start(job, ray_address)
    for victim in ("DecodeActor", "EncodeActor", "WriteActor", "tokpipe.media.child"):
        _wait_for_a_commit(job, driver)
        assert driver.poll() is None, f"ended before {victim} could be killed: {finish(driver)}"
        pids = pids_of(victim)
        assert pids, f"no {victim} runs"
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    code, printed = finish(driver)
    assert code == 0, printed
    assert_complete(job)
    assert codes_of(job) == codes_of(undisturbed)
