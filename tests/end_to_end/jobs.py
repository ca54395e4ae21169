"""What end-to-end tests share: small real videos, small jobs, drivers as processes, comparisons."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.videos import encode
from tokpipe.config import load_job
from tokpipe.formats import job_record
from tokpipe.formats.manifest import iter_entries, load_state
from tokpipe.reader import open_output
from tokpipe.storage import open_store

SAMPLE = Path(__file__).parents[2] / "examples/data/bigbuckbunny.mp4"

Table = dict[tuple[str, int], tuple[tuple[int, ...], bytes]]
"""(clip id, chunk index) -> (shape, code bytes): what two runs are compared by."""


def write_video(
    path: Path, num_frames: int = 20, seed: int = 0, size: tuple[int, int] = (48, 64)
) -> None:
    """Write an H.264 video of a moving random pattern, unlike that of any other seed."""
    height, width = size
    rng = np.random.default_rng(seed)
    pattern = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    picture = pattern.repeat(8, axis=0).repeat(8, axis=1)
    encode(path, (np.roll(picture, index, axis=1) for index in range(num_frames)), size, fps=8)


def write_videos(folder: Path, count: int, num_frames: int = 20) -> list[Path]:
    paths = [folder / f"clip{index:03}.mp4" for index in range(count)]
    for index, path in enumerate(paths):
        write_video(path, num_frames, seed=index)
    return paths


def write_job(
    path: Path, source: dict[str, Any] | list[dict[str, Any]], output_uri: str, **changes: Any
) -> Path:
    """Write a job file with a tiny tokenizer; ``changes`` replace whole sections."""
    job: dict[str, Any] = {
        "dataset": "test",
        "sources": source if isinstance(source, list) else [source],
        "output": {"uri": output_uri, "shard_bytes": 1024},
        "sampling": {"fps": 8, "max_clip_frames": 9},
        "frames": {"size": [32, 32]},
        "tokenizer": {
            "encoder": {"ch": 32, "ch_mult": [1, 1, 1], "num_res_blocks": 1, "z_channels": 4},
            "quantizer": {"kind": "fsq", "levels": [8, 8, 8, 8]},
        },
        "chunking": {"chunk_frames": 9},
        "encode": {"device": "cpu"},
        "runtime": {"progress_interval_s": 2, "clips_per_lease": 2},
        "max_rejected_fraction": 0.0,
    }
    job.update(changes)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(job))
    return path


def files(folder: Path) -> dict[str, Any]:
    return {"kind": "files", "uri": f"{folder}/*.mp4"}


def start(job: Path, address: str | None = None, *options: str) -> subprocess.Popen[str]:
    """Start a driver, on the cluster at ``address`` or on one of its own."""
    environment = dict(os.environ)
    environment.pop("RAY_ADDRESS", None)
    if address is not None:
        environment["RAY_ADDRESS"] = address
    return subprocess.Popen(
        [sys.executable, "-m", "tokpipe.run", str(job), *options],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(driver: subprocess.Popen[str], timeout_s: float = 120.0) -> tuple[int, str]:
    """Wait for a driver; return its exit code and what it printed."""
    try:
        printed, _ = driver.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        driver.kill()
        printed, _ = driver.communicate()
        raise AssertionError(f"still running after {timeout_s} s:\n{printed}") from None
    return driver.returncode, printed


def run(job: Path, address: str | None = None, timeout_s: float = 120.0) -> tuple[int, str]:
    return finish(start(job, address), timeout_s)


def run_well(job: Path, address: str | None = None, timeout_s: float = 120.0) -> str:
    """Run a job that must end with exit code 0; return what it printed."""
    code, printed = run(job, address, timeout_s)
    assert code == 0, printed
    return printed


def kill(driver: subprocess.Popen[str]) -> None:
    """SIGKILL a driver that this test started."""
    driver.send_signal(signal.SIGKILL)
    driver.communicate(timeout=30)


def wait_until(
    condition: Callable[[], bool], timeout_s: float = 90.0, every_s: float = 0.05
) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(every_s)


def codes_of(job: Path) -> Table:
    """The decoded table of a job's output, read through its manifest with every check."""
    config = load_job(job)
    table: Table = {}
    for clip in open_output(config.output.uri, config.storage).clips():
        for index, chunk in enumerate(clip.chunks):
            key = (clip.clip_id, index)
            assert key not in table, f"{key} is there twice"
            table[key] = (chunk.codes.shape, chunk.codes.tobytes())
    return table


def rejections_of(job: Path) -> dict[str, str]:
    """Source URI -> reason, of every rejected clip."""
    config = load_job(job)
    output = open_output(config.output.uri, config.storage)
    return {rejected.ref.source_uri: rejected.reason for rejected in output.rejected()}


def assert_complete(job: Path) -> None:
    """Every plan row settled, every clip once, every listed object there in its listed size."""
    config = load_job(job)
    store = open_store(config.output.uri, config.storage)
    record = job_record.read(store)
    state = load_state(store, record.num_rows)
    assert state.committed.num_done == record.num_rows
    seen: set[str] = set()
    for entry in iter_entries(store):
        seen -= {one.ref.clip_id for one in entry.reopened}
        for ref in entry.refs():
            assert ref.clip_id not in seen, f"{ref} is listed twice"
            seen.add(ref.clip_id)
        for receipt in entry.shards:
            assert store.size(receipt.shard) == receipt.size_bytes
            assert store.size(receipt.side_table) == receipt.side_table_size_bytes


def num_entries(job: Path) -> int:
    """How many commits a local output has by now; drivers' claims are none."""
    folder = Path(load_job(job).output.uri) / "manifest"
    return sum(b'"claim"' not in path.read_bytes() for path in folder.glob("????????.json"))


def peak_actors(printed: str, stage: str) -> int:
    """The most actors of a stage that any progress line of a driver shows."""
    found = re.findall(rf"{stage} [\d,]+ \([\d.,]+/s, (\d+) actors\)", printed)
    return max(map(int, found), default=0)
