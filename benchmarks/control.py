"""What the runtime costs: clips per second when no stage has anything to do."""

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.figures import Figure, Result, Skipped
from benchmarks.free_stages import FreeDecode, FreeEncode, FreeWrite
from benchmarks.processes import (
    cpu_seconds,
    in_fresh_process,
    keep_to_cores,
    resident_mb,
)
from benchmarks.ray_data import MISSING, free_clips_per_s
from benchmarks.requests import requests_of
from benchmarks.virtual_cluster import GPU_LIMITS, Kind, VirtualCluster
from benchmarks.watched_run import cluster_of, job_of, run_watched
from tokpipe.config import JobConfig
from tokpipe.config.job import StoreOptions
from tokpipe.formats.manifest import load_state
from tokpipe.runtime.assemble import Run
from tokpipe.runtime.commit import Committer
from tokpipe.runtime.dispatch.protocol import Room
from tokpipe.storage import Store

CORES = 2
CLIPS_PER_SHARD = 2000
"""About a dozen megabytes of codes, for clips of 17 frames of 256x256."""
SMALL_LEASE = 8
ENCODERS = 400
DECODERS_EACH = 8
ENCODE_S = 0.2
"""Of one clip, so 400 encoders need 2,000 clips per second."""
DECODE_S = 1.4
"""So that decoders are 14 % faster than encoders."""

WIDE, SQUARE, TALL, OTHER = (
    ((h, w), 17) for h, w in [(192, 336), (256, 256), (336, 192), (256, 320)]
)
THREE_SIZES: Mapping[Kind, float] = {WIDE: 1 / 3, SQUARE: 1 / 3, TALL: 1 / 3}
RARE_SIZE: Mapping[Kind, float] = {WIDE: 0.3, SQUARE: 0.5, TALL: 0.19, OTHER: 0.01}
"""Clips with this size and number of frames, and their shares."""


def run(quick: bool) -> Iterator[Result]:
    """Clips per second of dispatcher and Ray; seconds and memory of the driver alone."""
    yield from _with_ray(2_000 if quick else 60_000, quick)
    for num_encoders in ENCODERS, 1_000:
        for driver_s in 0.0, 0.001:
            yield _dispatcher_alone(num_encoders, driver_s, 10 if quick else 300)
    for batch_chunks in 4, 8:
        for kinds, what in (THREE_SIZES, "three frame sizes"), (RARE_SIZE, "and a rare one"):
            yield _full_batches(batch_chunks, kinds, what, 300 if quick else 3_000)
    yield _memory(20_000 if quick else 2_000_000)
    yield _requests()
    name = f"Ray Data by hand with free stages, {CORES} cores"
    if MISSING is not None:
        yield Skipped(name, MISSING)
    else:
        num_clips = 400 if quick else 8_000
        clips_per_s = in_fresh_process(_by_ray_data, num_clips)
        yield Figure(name, clips_per_s, "clips/s", details={"clips": num_clips})


# --- dispatcher and Ray -------------------------------------------------------------------------


def _with_ray(num_clips: int, quick: bool) -> Iterator[Result]:
    clips_per_s, details = in_fresh_process(_run_free_job, num_clips)
    yield Figure(
        f"dispatcher and Ray with free stages, {CORES} cores",
        *(clips_per_s, "clips/s", 2000),
        details=details,
        remark="default settings",
    )
    if not quick:
        clips_per_s, details = in_fresh_process(_run_free_job, num_clips // 4, SMALL_LEASE)
        name = f"the same with runtime.clips_per_lease={SMALL_LEASE}"
        yield Figure(name, clips_per_s, "clips/s", details=details)


def _run_free_job(
    num_clips: int, clips_per_lease: int | None = None
) -> tuple[float, dict[str, float]]:
    """Clips per second, and details."""
    cores = keep_to_cores(CORES)
    with tempfile.TemporaryDirectory() as folder, cluster_of(CORES) as address:
        job = free_job(Path(folder), num_clips, address, clips_per_lease)
        run = run_watched(job, _freed, probe=cpu_seconds)
    assert run.totals.num_clips == num_clips
    return num_clips / run.seconds, {
        "clips": num_clips,
        "cores": cores,
        "clips_per_lease": num_clips / max(1, run.num_leases["encode"]),
        "cpu_us_per_clip": run.probed / num_clips * 1e6,
        "driver_mb": run.samples[-1].memory_mb,
    }


def free_job(
    folder: Path, num_clips: int, address: str, clips_per_lease: int | None = None
) -> JobConfig:
    """A job with the default settings over a table of videos that are never opened."""
    table = folder / "clips.parquet"
    uris = [f"s3://bucket/videos/{row // 1000:05d}/{row:09d}.mp4" for row in range(num_clips)]
    pq.write_table(pa.table({"uri": uris}), table)
    lease = {} if clips_per_lease is None else {"clips_per_lease": clips_per_lease}
    return job_of(
        {
            "dataset": "free",
            "sources": [{"kind": "table", "uri": str(table), "uri_column": "uri"}],
            # One byte and a half a code, and one code a clip: see FreeEncode.
            "output": {"uri": str(folder / "out"), "shard_bytes": CLIPS_PER_SHARD * 3 // 2},
            "sampling": {"max_clip_frames": 17},
            "frames": {"size": [8, 8]},
            "tokenizer": {"checkpoint": "builtin://fsq-4x8x8"},
            "encode": {"device": "cpu"},
            "runtime": {"cluster": address, **lease},
        }
    )


def _freed(run: Run) -> Run:
    vars(run).update(decode=FreeDecode(), encode=FreeEncode, write=FreeWrite())
    return run


def _by_ray_data(num_clips: int) -> float:
    keep_to_cores(CORES)
    with tempfile.TemporaryDirectory() as folder, cluster_of(CORES) as address:
        return free_clips_per_s(address, Path(folder), num_clips, SMALL_LEASE)


def _requests() -> Figure:
    """Requests per clip, if each clip has another source."""
    parts = in_fresh_process(requests_of, 4)
    of_shard = parts["shard"] + parts["commit"]
    return Figure(
        f"requests to stores per clip, {CLIPS_PER_SHARD:,} clips a shard",
        parts["source"] + of_shard / CLIPS_PER_SHARD,
        "requests",
        details=parts,
        remark="clips of one source share its two; a checkpoint takes two more per 64 commits",
    )


# --- the driver alone ---------------------------------------------------------------------------


def _dispatcher_alone(num_encoders: int, driver_s: float, clips_each: int) -> Figure:
    """The dispatcher's own time for a simulated cluster, in which a lease costs the driver
    ``driver_s`` of virtual time."""
    num_clips, num_decoders = num_encoders * clips_each, num_encoders * DECODERS_EACH
    cluster = VirtualCluster(
        GPU_LIMITS,
        Room(cpus=num_decoders + num_encoders, gpus=num_encoders),
        {"decode": DECODE_S, "encode": ENCODE_S, "write": 0.001},
        num_clips,
        driver_s=driver_s,
    )
    run = cluster.play()
    name = f"dispatcher alone, {num_encoders:,} encoders and {num_decoders:,} decoders, calculated"
    return Figure(
        name + (f", {driver_s * 1000:g} ms of driver per lease" if driver_s else ""),
        num_clips / run.handling_s,
        "clips/s",
        details={
            "events_per_s": run.num_events / run.handling_s,
            "clips": num_clips,
            "encoders_busy": run.steady_share,
        },
        remark=f"one core; {num_encoders} GPUs need {num_encoders / ENCODE_S:,.0f}",
    )


def _full_batches(
    batch_chunks: int, kinds: Mapping[Kind, float], what: str, clips_each: int
) -> Figure:
    """How full batches are if clips have one chunk each."""
    num_encoders, num_decoders, row_s = 8, 64, 0.05
    cluster = VirtualCluster(
        replace(GPU_LIMITS, batch_chunks=batch_chunks),
        Room(cpus=num_decoders + num_encoders, gpus=num_encoders),
        {"decode": row_s * DECODERS_EACH / 1.14, "encode": row_s, "write": 0.001},
        num_encoders * clips_each,
        kinds=kinds,
    )
    run = cluster.play()
    return Figure(
        f"rows of batches of {batch_chunks} that hold a chunk, {what}, calculated",
        run.useful_share,
        "of all rows",
        target=0.95,
        details={
            "encoders_busy": run.steady_share,
            "clips_held_at_most": run.most_held,
            "clips_fetched_per_clip": run.fetched,
            "dispatcher_us_per_clip": run.handling_s / run.num_clips * 1e6,
        },
        remark=f"one chunk per clip, {num_encoders} encoders, decoders 14 % faster",
    )


def _memory(num_clips: int) -> Figure:
    before, after, cpu_s = in_fresh_process(_memory_of_driver, num_clips)
    grown_mb = max(0.0, after - before)
    return Figure(
        "driver memory per million clips, dispatcher, feed and committer",
        grown_mb / (num_clips * 0.75) * 1e6,
        "MB",
        target=16.0,
        better="lower",
        details={
            "clips": num_clips,
            "mb_at_a_quarter": before,
            "mb_at_the_end": after,
            "cpu_us_per_clip": cpu_s / num_clips * 1e6,
        },
        remark="16 bytes a clip are less than any object: only shards and commits may count",
    )


def _memory_of_driver(num_clips: int) -> tuple[float, float, float]:
    """Memory in MB at a quarter of a job and at its end, and seconds of CPU."""
    seen: list[tuple[int, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder, StoreOptions())
        committer = Committer(store, load_state(store, num_clips), "bench")
        committer.claim()
        cluster = VirtualCluster(
            GPU_LIMITS,
            Room(cpus=72, gpus=8),
            {"decode": 1.3, "encode": ENCODE_S, "write": 0.001},
            num_clips,
            committer=committer,
            on_commit=lambda committed: seen.append((committed, resident_mb())),
        )
        started = time.process_time()
        cluster.play()
        cpu_s = time.process_time() - started
    quarter = next(mb for committed, mb in seen if committed >= num_clips / 4)
    return quarter, seen[-1][1], cpu_s
