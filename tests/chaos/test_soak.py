"""One driver, thousands of clips, dozens of kills: nothing grows, and nothing is left behind."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
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
from tests.s3_server import die_with_parent
from tokpipe.cli import main

NUM_VIDEOS, CLIPS_OF_A_VIDEO, NUM_KILLS = 64, 50, 36
KILL_EVERY_S = 3.0
MAX_GROWTH_BYTES = 32 * 2**20
MAX_MORE_DESCRIPTORS = 12
"""Its actors come and go, each with some connections."""


@pytest.fixture
def scratch() -> Iterator[Path]:
    # A short path, because it begins the names of Ray's sockets.
    folder = Path(tempfile.mkdtemp(prefix="s-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_long_run_with_many_kills_stays_flat_and_leaves_nothing(
    tmp_path: Path, scratch: Path
) -> None:
    write_videos(tmp_path / "videos", NUM_VIDEOS, num_frames=9 * CLIPS_OF_A_VIDEO)
    hurry, mark = tmp_path / "hurry", f"SOAK={uuid.uuid4().hex}"
    slow = slow_tokenizer(until=hurry, pause_s=0.05)
    job = write_job(
        tmp_path / "job.yaml",
        files(tmp_path / "videos"),
        str(tmp_path / "out"),
        tokenizer=slow,
        # Kills strike at random: a clip that was there three times is still a good one.
        runtime={"clips_per_lease": 2, "encode": {"max_actors": 1}, "max_attempts": 20},
    )
    environment = {**os.environ, "TMPDIR": str(scratch), "SOAK": mark.partition("=")[2]}
    environment.pop("RAY_ADDRESS", None)
    shared_before = shared_memory()
    with (tmp_path / "log").open("wb") as log:
        driver = subprocess.Popen(
            [sys.executable, "-m", "tokpipe.run", str(job)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,
        )
    sizes, descriptors, num_kills = [], [], 0
    rng, struck_at = random.Random(0), time.monotonic()
    while driver.poll() is None:
        time.sleep(0.5)
        pids = descendants_of(driver.pid)
        victim = VICTIMS[("kill_decode", "kill_write", "kill_child", "kill_encode")[num_kills % 4]]
        victims = sorted(pid for pid in pids if victim in command_of(pid))
        if victims and num_kills < NUM_KILLS and time.monotonic() > struck_at + KILL_EVERY_S:
            os.kill(rng.choice(victims), signal.SIGKILL)
            num_kills, struck_at = num_kills + 1, time.monotonic()
        if num_kills == NUM_KILLS:
            hurry.touch()
        with contextlib.suppress(OSError):
            if num_kills:
                sizes.append(resident_bytes(driver.pid))
                descriptors.append(sum(1 for _ in Path(f"/proc/{driver.pid}/fd").iterdir()))
    assert driver.returncode == 0, (tmp_path / "log").read_text()
    assert num_kills == NUM_KILLS
    assert_complete(job)
    assert output_of(job).num_clips == NUM_VIDEOS * CLIPS_OF_A_VIDEO
    assert main(["audit", str(tmp_path / "out")]) == 0

    fifth = len(sizes) // 5
    assert median(sizes[-fifth:]) - median(sizes[fifth : 2 * fifth]) < MAX_GROWTH_BYTES
    grown = median(descriptors[-fifth:]) - median(descriptors[fifth : 2 * fifth])
    assert grown <= MAX_MORE_DESCRIPTORS
    wait_until(lambda: not marked(mark), 120)
    assert not [path.name for path in scratch.glob("tokpipe-*")]
    assert not shared_memory() - shared_before


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def marked(mark: str) -> list[int]:
    """Processes with ``mark`` in the environment that they were started with."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def shared_memory() -> set[str]:
    """Names in /dev/shm that no process has mapped."""
    mapped = ""
    for path in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            mapped += "".join(line for line in path.open() if "/dev/shm/" in line)
    return {path.name for path in Path("/dev/shm").iterdir() if path.name not in mapped}
