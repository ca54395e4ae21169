"""What end-to-end tests share: small real videos, small jobs, ways to run them, comparisons."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from rich.console import Console

from tests.videos import encode
from tokpipe.cli import main
from tokpipe.config import load_job
from tokpipe.config.job import JobConfig
from tokpipe.formats import job_record
from tokpipe.formats.manifest import iter_entries, load_state
from tokpipe.reader import Output, open_output
from tokpipe.runtime.assemble import JobOutput, RetryRejected, Run
from tokpipe.storage import Store
from tokpipe.types import DecodedClip, EncodedClip, Failed, Rejected, WorkItem

SAMPLE = Path(__file__).parents[2] / "examples/data/bigbuckbunny.mp4"

NETWORK: dict[str, Any] = {"ch": 32, "ch_mult": [1, 1, 1], "num_res_blocks": 1}
TOKENIZER: dict[str, Any] = {
    "encoder": {**NETWORK, "z_channels": 4},
    "quantizer": {"kind": "fsq", "levels": [8, 8, 8, 8]},
}
WITH_DECODER: dict[str, Any] = {**TOKENIZER, "decoder": NETWORK, "norm": "frame"}
"""The same network, able to stream and to decode."""
RUNTIME: dict[str, Any] = {
    "progress_interval_s": 2,
    "clips_per_lease": 2,
    "encode": {"max_actors": 1},  # each one imports torch
}

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
        "tokenizer": TOKENIZER,
        "chunking": {"chunk_frames": 9},
        "encode": {"device": "cpu"},
        "runtime": RUNTIME,
        "max_rejected_fraction": 0.0,
    }
    job.update(changes)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(job))
    return path


def files(folder: Path | str) -> dict[str, Any]:
    return {"kind": "files", "uri": f"{folder}/*.mp4"}


def slow_tokenizer(until: Path, pause_s: float = 0.25) -> dict[str, Any]:
    """A tokenizer that takes ``pause_s`` for a clip until a file exists, so its job lasts."""
    return {
        "kind": "custom",
        "implementation": "tests.models.custom_tokenizers:Slow",
        "arguments": {"until": str(until), "pause_s": pause_s},
        "declares": {
            "temporal_stride": 2,
            "spatial_stride": 4,
            "codebook_size": 16,
            "value_range": [0.0, 1.0],
        },
    }


# --- running jobs -------------------------------------------------------------------------------


def run(job: Path, address: str | None = None, *options: str) -> tuple[int, str]:
    """Run a job with its driver in this process; return the exit code and what it printed.

    It runs on the cluster at ``address``, or on one of its own.
    """
    printed = io.StringIO()
    with (
        mock.patch.dict(os.environ),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        _set_address(os.environ, address)
        code = main(["run", str(job), *options])
    return code, printed.getvalue()


def run_well(job: Path, address: str | None = None, *options: str) -> str:
    """Run a job that must end with exit code 0; return what it printed."""
    code, printed = run(job, address, *options)
    assert code == 0, printed
    return printed


def start(job: Path, address: str | None = None) -> subprocess.Popen[str]:
    """Start a driver in a process, on the cluster at ``address`` or on one of its own."""
    environment = dict(os.environ)
    _set_address(environment, address)
    return subprocess.Popen(
        [sys.executable, "-m", "tokpipe.run", str(job)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_in_group(
    job: Path, *, cwd: Path | None = None, **variables: str
) -> subprocess.Popen[str]:
    """Start a driver, and a local Ray unless ``variables`` name one, as `timeout` and Slurm do."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-m", "tokpipe.run", str(job)],
        cwd=cwd,
        env={**environment, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _set_address(environment: Any, address: str | None) -> None:
    environment.pop("RAY_ADDRESS", None)
    if address is not None:
        environment["RAY_ADDRESS"] = address


def finish(driver: subprocess.Popen[str], timeout_s: float = 600.0) -> tuple[int, str]:
    """Wait for a driver; return its exit code and what it printed."""
    try:
        printed, _ = driver.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        driver.kill()
        printed, _ = driver.communicate()
        raise AssertionError(f"still running after {timeout_s} s:\n{printed}") from None
    return driver.returncode, printed


def stop(driver: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str]:
    """Send a signal to a driver that works and wait for its end."""
    assert driver.poll() is None, f"it ended before it could be stopped: {finish(driver)}"
    driver.send_signal(number)
    return finish(driver)


def wait_until(
    condition: Callable[[], bool], timeout_s: float = 600.0, every_s: float = 0.05
) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s in vain"
        time.sleep(every_s)


def side_rows(job: Path) -> list[dict[str, Any]]:
    """The rows of an output's side tables, by clip id."""
    tables = output_of(job).iter_side_tables()
    return sorted((row for one in tables for row in one.to_pylist()), key=lambda r: r["clip_id"])


def shard_rows(job: Path) -> list[dict[str, Any]]:
    """The rows of an output's shards, by clip id and chunk."""
    rows = output_of(job).to_table().to_pylist()
    return sorted(rows, key=lambda row: (row["clip_id"], row["chunk_index"]))


def run_without_ray(
    config: JobConfig, *, extend: bool = False, retry: RetryRejected | None = None
) -> None:
    """Make the output of a job in this process, each clip by itself, by the stages of a run."""
    output, console = JobOutput(config, extend=extend), Console(quiet=True)
    output.start(console)
    parts = Run(output, console, retry)
    encode_stage = parts.encode()
    encode_stage.setup("cpu", parts.weights)
    parts.write.setup()
    with contextlib.closing(parts.decode):
        parts.decode.setup(parts.reused)
        for item in parts.feed.fetch(10**6).items:
            made = list(_made_of(item, parts, encode_stage))
            rejected = [one for one in made if isinstance(one, Rejected)]
            encoded = [one for one in made if isinstance(one, EncodedClip)]
            assert len(rejected) + len(encoded) == len(made), made
            name = f"{parts.shard_prefix}.{item.row}-1"
            receipts = [parts.write.process(name, encoded)] if encoded else []
            parts.committer.commit(receipts, rejected)


def _made_of(
    item: WorkItem, parts: Run, encode_stage: Any
) -> Iterator[EncodedClip | Rejected | Failed]:
    """Yield what becomes of each clip of a plan row, or of each piece of its streamed clip."""
    state, todo = None, [item]
    while todo:
        (clip,) = parts.decode.process([todo.pop()])
        if isinstance(clip, DecodedClip) and clip.piece.num_pieces > 1:
            encoded, state = encode_stage.process_piece(clip, state)
            yield encoded
            if not clip.piece.is_last:
                number = clip.piece.index + 1
                todo.append(replace(item, piece=number, num_pieces=clip.piece.num_pieces))
        else:
            yield from encode_stage.process([clip]) if isinstance(clip, DecodedClip) else [clip]
            number, total = clip.ref.segment + 1, clip.ref.num_segments
            if number < total:
                todo.append(replace(item, segment=number, num_segments=total))


def codes_without_ray(job: Path) -> Table:
    """The table that a job must give, however it is run."""
    config = load_job(job)
    output = config.output.model_copy(update={"uri": f"memory://{uuid.uuid4().hex}"})
    alone = config.model_copy(update={"output": output})
    run_without_ray(alone)
    return codes_of(alone)


# --- looking at outputs -------------------------------------------------------------------------


def codes_of(job: Path | JobConfig) -> Table:
    """The decoded table of a job's output, read through its manifest with every check."""
    table: Table = {}
    for clip in output_of(job).clips():
        for index, chunk in enumerate(clip.chunks):
            key = (clip.clip_id, index)
            assert key not in table, f"{key} is there twice"
            table[key] = (chunk.codes.shape, chunk.codes.tobytes())
    return table


def output_of(job: Path | JobConfig) -> Output:
    config = job if isinstance(job, JobConfig) else load_job(job)
    return open_output(config.output.uri, config.storage)


def rejections_of(job: Path) -> dict[str, str]:
    """Source URI -> reason, of every rejected clip."""
    return {one.ref.source_uri: one.reason for one in output_of(job).rejected()}


def assert_complete(job: Path | JobConfig) -> None:
    """Every plan row settled, every clip once, every listed object there in its listed size."""
    config = job if isinstance(job, JobConfig) else load_job(job)
    store = Store(config.output.uri, config.storage)
    record = job_record.read(store)
    state = load_state(store, record.num_rows)
    assert state.committed.num_done == state.committed.num_rows
    seen: set[str] = set()
    for entry in iter_entries(store):
        seen -= {one.ref.clip_id for one in entry.reopened}
        for ref in entry.refs():
            assert ref.clip_id not in seen, f"{ref} is listed twice"
            seen.add(ref.clip_id)
        for receipt in entry.shards:
            assert store.size(receipt.shard) == receipt.size_bytes
            assert store.size(receipt.side_table) == receipt.side_table_size_bytes


def num_commits(job: Path) -> int:
    """How many entries of a local output's manifest list something; claims do not."""
    folder = Path(load_job(job).output.uri) / "manifest"
    return sum(b'"claim"' not in path.read_bytes() for path in folder.glob("????????.json"))


def peak_actors(printed: str, stage: str) -> int:
    """The most actors of a stage in any progress line of a driver."""
    found = re.findall(rf"{stage} [\d,]+ \([\d.,]+/s, (\d+) workers?\)", printed)
    return max(map(int, found), default=0)


def await_line(driver: subprocess.Popen[str], is_wanted: Callable[[str], bool]) -> str:
    """Return what a driver prints, up to the first line that is wanted."""
    assert driver.stdout is not None
    seen: list[str] = []
    while not (seen and is_wanted(seen[-1])):
        seen.append(driver.stdout.readline())
        assert seen[-1], f"ended too early: {seen}"
    return "".join(seen)
