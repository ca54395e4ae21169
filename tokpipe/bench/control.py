"""What the runtime costs: clips per second when no stage has anything to do."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tokpipe.bench.figures import Figure, Result
from tokpipe.bench.free_stages import FreeDecode, FreeEncode, FreeWrite
from tokpipe.bench.fresh_process import in_fresh_process, keep_to_cores
from tokpipe.bench.watched_run import cluster_of, job_of, run_watched
from tokpipe.config import JobConfig
from tokpipe.runtime.shell import Stages

CORES = 2
CLIPS_PER_SHARD = 2000
"""About what a shard of 128 MiB holds of clips with 17 frames of 256x256."""


def run(quick: bool) -> Iterator[Result]:
    """Clips per second of dispatcher and Ray; seconds and memory of the driver alone."""
    yield from _with_ray(4_000 if quick else 100_000)


def _with_ray(num_clips: int) -> Iterator[Result]:
    told = in_fresh_process(_run_free_job, num_clips)
    yield Figure(
        "clips per second with free stages, 2 cores",
        told.clips_per_s,
        "clips/s",
        target=2000,
        details={"clips": num_clips, "cores": told.cores, "events_per_clip": told.events_per_clip},
    )


@dataclass(frozen=True)
class _Told:
    cores: int
    clips_per_s: float
    events_per_clip: float


def _run_free_job(num_clips: int) -> _Told:
    cores = keep_to_cores(CORES)
    with tempfile.TemporaryDirectory() as folder, cluster_of(CORES) as address:
        run = run_watched(free_job(Path(folder), num_clips, address), _freed)
    return _Told(cores, num_clips / run.seconds, run.num_events / num_clips)


def free_job(folder: Path, num_clips: int, address: str = "auto") -> JobConfig:
    """A job with the default settings over a table of videos that nobody opens."""
    table = folder / "clips.parquet"
    uris = [
        f"s3://bucket/videos/{number // 1000:05d}/{number:09d}.mp4" for number in range(num_clips)
    ]
    pq.write_table(pa.table({"uri": uris}), table)
    return job_of(
        {
            "dataset": "free",
            "sources": [{"kind": "table", "uri": str(table), "uri_column": "uri"}],
            # One byte and a half a code, and one code a clip: see FreeEncode.
            "output": {"uri": str(folder / "out"), "shard_bytes": CLIPS_PER_SHARD * 3 // 2},
            "sampling": {"max_clip_frames": 17},
            "frames": {"size": [128, 128]},
            "tokenizer": {"checkpoint": "builtin://fsq-4x8x8"},
            "encode": {"device": "cpu"},
            "runtime": {"cluster": address},
        }
    )


def _freed(stages: Stages) -> Stages:
    return replace(stages, decode=FreeDecode(), encode=FreeEncode(), write=FreeWrite())
