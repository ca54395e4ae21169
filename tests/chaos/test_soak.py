"""One driver, thousands of clips, dozens of kills: nothing grows, and nothing is left behind."""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from statistics import median

import pytest

from tests.chaos.matrix import VICTIMS
from tests.end_to_end.jobs import (
    assert_complete,
    files,
    output_of,
    slow_tokenizer,
    wait_until,
    write_job,
    write_videos,
)
from tests.end_to_end.processes import command_of, descendants_of
from tokpipe.cli import main

NUM_VIDEOS, CLIPS_OF_A_VIDEO, NUM_KILLS, KILL_EVERY_S = 64, 50, 36, 3.0


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_long_run_with_many_kills_stays_flat_and_leaves_nothing(tmp_path: Path) -> None:
    write_videos(tmp_path / "videos", NUM_VIDEOS, num_frames=9 * CLIPS_OF_A_VIDEO)
    hurry, shared_before = tmp_path / "hurry", shared_memory()
    job = write_job(
        tmp_path / "job.yaml",
        files(tmp_path / "videos"),
        str(tmp_path / "out"),
        tokenizer=slow_tokenizer(until=hurry, pause_s=0.05),
        # Kills strike at random: a clip that was there three times is still a good one.
        runtime={"clips_per_lease": 2, "encode": {"max_actors": 1}, "max_attempts": 20},
    )
    # A short path, because it begins the names of Ray's sockets.
    with tempfile.TemporaryDirectory(
        prefix="s-", dir="/tmp", ignore_cleanup_errors=True
    ) as scratch:
        mark = {"SOAK": uuid.uuid4().hex}
        environment = {**os.environ, **mark, "TMPDIR": scratch}
        environment.pop("RAY_ADDRESS", None)
        with (tmp_path / "log").open("wb") as log:
            driver = subprocess.Popen(
                [sys.executable, "-m", "tokpipe.run", str(job)],
                env=environment,
                stdout=log,
                stderr=log,
            )
        try:
            sizes, descriptors = kill_and_measure(driver, hurry)
        finally:
            driver.kill()
        assert driver.wait() == 0, (tmp_path / "log").read_text()[-5000:]
        wait_until(lambda: not processes_with("SOAK=" + mark["SOAK"]), 120)
        assert not [path.name for path in Path(scratch).glob("tokpipe-*")]
        assert not shared_memory() - shared_before
    assert grown(sizes) < 32 * 2**20
    assert grown(descriptors) < 12, "its actors come and go, each with some connections"
    assert_complete(job)
    assert output_of(job).num_clips == NUM_VIDEOS * CLIPS_OF_A_VIDEO
    assert main(["audit", str(tmp_path / "out")]) == 0


def kill_and_measure(driver: "subprocess.Popen[bytes]", hurry: Path) -> tuple[list[int], list[int]]:
    """Kill workers until there were ``NUM_KILLS``; return the driver's bytes and descriptors."""
    sizes: list[int] = []
    descriptors: list[int] = []
    num_kills, rng, struck_at = 0, random.Random(0), time.monotonic()
    while driver.poll() is None:
        time.sleep(0.5)
        kind = VICTIMS[sorted(VICTIMS)[num_kills % len(VICTIMS)]]
        victims = sorted(pid for pid in descendants_of(driver.pid) if kind in command_of(pid))
        if victims and num_kills < NUM_KILLS and time.monotonic() > struck_at + KILL_EVERY_S:
            os.kill(rng.choice(victims), signal.SIGKILL)
            num_kills, struck_at = num_kills + 1, time.monotonic()
            if num_kills == NUM_KILLS:
                hurry.touch()
        with contextlib.suppress(OSError):
            if num_kills:
                place = Path(f"/proc/{driver.pid}")
                pages = int((place / "statm").read_text().split()[1])
                sizes.append(pages * os.sysconf("SC_PAGE_SIZE"))
                descriptors.append(sum(1 for _ in (place / "fd").iterdir()))
    assert num_kills == NUM_KILLS or driver.returncode, "there was nothing left to kill"
    print(f"{num_kills} kills; bytes {sizes[::20]}, descriptors {descriptors[::20]}")
    return sizes, descriptors


def grown(amounts: list[int]) -> float:
    """By how much the last fifth is above the second."""
    fifth = len(amounts) // 5
    return median(amounts[-fifth:]) - median(amounts[fifth : 2 * fifth])


def processes_with(variable: str) -> list[int]:
    """Processes that were started with ``variable`` in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if variable.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def shared_memory() -> set[str]:
    """Names in /dev/shm that no process has mapped."""
    mapped = ""
    for path in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            mapped += "".join(re.findall("/dev/shm/.*", path.read_text(errors="replace")))
    return {path.name for path in Path("/dev/shm").iterdir() if path.name not in mapped}
