"""A whole job's speed against its slowest stage alone, and how busy an accelerator is."""

import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.figures import Figure, Result
from benchmarks.free_stages import FakeAccelerator
from benchmarks.processes import in_fresh_process, keep_to_cores
from benchmarks.sample_job import sample_job, work_items
from benchmarks.virtual_cluster import GPU_LIMITS, VirtualCluster
from benchmarks.watched_run import cluster_of, run_watched
from tokpipe.config import JobConfig
from tokpipe.runtime.assemble import usual_clips
from tokpipe.runtime.dispatch.protocol import Room
from tokpipe.stages.chunks import pieces_of
from tokpipe.stages.decode import DecodeStage
from tokpipe.stages.encode import EncodeStage
from tokpipe.types import DecodedClip
from tokpipe.weights.read import read_weights

CORES = 2
SPARE = 1.2
"""Decode capacity over what encoders need."""
DIFFERENT_CLIPS = 8


def run(quick: bool) -> Iterator[Result]:
    """Whole jobs against their parts."""
    rounds = 1 if quick else 3
    yield _whole_job(6 if quick else 150, rounds)
    yield _fake_accelerator(6 if quick else 150, rounds)
    yield _many_decoders(2_000 if quick else 20_000)


# --- a job on CPUs ------------------------------------------------------------------------------


def _whole_job(count: int, rounds: int) -> Figure:
    """One decoder and one encoder, each with a core: the driver, Ray and the writer share
    what is left."""
    ratios, details = [], {}
    for _ in range(rounds):  # in turn, so that a busy machine slows all three
        encode = in_fresh_process(_encode_alone, count)
        job = in_fresh_process(_job_on_cpus, count)
        decode = in_fresh_process(_decode_alone, count)
        ratios.append(job["job_clips_per_s"] / min(decode, encode))
        details = {"decode_alone": decode, "encode_alone": encode, "clips": count, **job}
    return Figure(
        f"whole job / its slowest stage alone, 720p to 128x128 on {CORES} cores",
        statistics.median(ratios),
        "x",
        target=0.95,
        details=details,
        remark="from when all stages are up to the last commit; details are of the last round",
    )


def _job_on_cpus(count: int, **sections: Any) -> dict[str, float]:
    """Clips per second, fractions of the time, seconds to start, seconds of encoding."""
    keep_to_cores(CORES)
    with tempfile.TemporaryDirectory() as folder, cluster_of(CORES) as address:
        one = {"max_actors": 1}
        runtime = {"cluster": address, "decode": one, "encode": one}
        run = run_watched(sample_job(Path(folder), count, runtime=runtime, **sections))
    assert run.totals.num_clips == count, run.totals
    assert run.ready is not None
    spent = run.account.spent_s
    return {
        "job_clips_per_s": count / run.seconds,
        "decode_busy": (spent["decode"] + spent["download"]) / run.seconds,
        "encode_busy": spent["encode"] / run.seconds,
        "start_s": run.ready - run.began,
        "encoding_s": run.last_done["encode"] - run.first_done["encode"],
    }


def _decode_alone(count: int) -> float:
    """Clips per second of the decode stage, in leases as large as the job's."""
    keep_to_cores(CORES)
    with tempfile.TemporaryDirectory() as folder:
        job = sample_job(Path(folder), 1)
        stage, lease = decoder_of(job), usual_clips(job, "cpu")
        items = work_items(Path(tempfile.mkdtemp(dir=folder)), count)
        stage.process(items[:1])
        started = time.monotonic()
        for at in range(0, count, lease):
            done = stage.process(items[at : at + lease])
            assert all(isinstance(one, DecodedClip) for one in done)
        seconds = time.monotonic() - started
        stage.close()
    return count / seconds


def _encode_alone(count: int) -> float:
    """Clips per second of the encode stage, on one thread, as in an actor with one CPU."""
    keep_to_cores(CORES)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        job = sample_job(Path(folder), 1)
        decoder, lease = decoder_of(job), usual_clips(job, "cpu")
        items = work_items(Path(tempfile.mkdtemp(dir=folder)), DIFFERENT_CLIPS)
        clips = [one for one in decoder.process(items) if isinstance(one, DecodedClip)]
        decoder.close()
    one_by_one = job.encode.model_copy(update={"batch_chunks": 1})
    stage = EncodeStage(job.tokenizer, job.chunking, one_by_one)
    stage.setup("cpu", read_weights(job.tokenizer, job.storage).encoding)
    stage.process(clips[:1])
    stream = cycle(clips)
    started = time.monotonic()
    for at in range(0, count, lease):
        stage.process(list(islice(stream, min(lease, count - at))))
    return count / (time.monotonic() - started)


def decoder_of(job: JobConfig) -> DecodeStage:
    stage = DecodeStage(job.sampling, job.frames, job.decode, job.storage, pieces_of(job))
    stage.setup()
    return stage


# --- an accelerator -----------------------------------------------------------------------------


def _fake_accelerator(count: int, rounds: int) -> Figure:
    """Real video and decoder, and an encoder that needs 1/1.2 of what the decoder can do."""
    shares, details = [], {}
    for _ in range(rounds):
        decode = in_fresh_process(_decode_alone, max(6, count // 4))
        chunk_s = SPARE / decode
        job = in_fresh_process(_job_on_cpus, count, tokenizer=_fake_tokenizer(chunk_s))
        shares.append(count * chunk_s / job["encoding_s"])
        details = {"chunk_s": chunk_s, "decode_alone": decode, "clips": count, **job}
    return Figure(
        f"simulated accelerator busy, decode capacity {SPARE}x of need",
        statistics.median(shares),
        "of its time",
        target=0.98,
        details=details,
        remark="computing alone counts, from its first chunk to its last",
    )


def _fake_tokenizer(chunk_s: float) -> dict[str, Any]:
    return {
        "kind": "custom",
        "implementation": "benchmarks.free_stages:FakeAccelerator",
        "arguments": {"chunk_s": chunk_s},
        "declares": {
            "temporal_stride": FakeAccelerator.temporal_stride,
            "spatial_stride": FakeAccelerator.spatial_stride,
            "codebook_size": 1024,
        },
    }


def _many_decoders(num_clips: int) -> Figure:
    """The same rule in a simulated cluster."""
    encoders, decoders, encode_s = 8, 64, 0.2
    decode_s = encode_s * decoders / encoders / SPARE
    cluster = VirtualCluster(
        replace(GPU_LIMITS, shard_bytes=128 * 2**20),
        Room(cpus=decoders + encoders, gpus=encoders),
        {"decode": decode_s, "encode": encode_s, "write": 0.01},
        num_clips,
    )
    share = cluster.play().steady_share
    return Figure(
        f"{encoders} accelerators and {decoders} decoders, calculated: busy",
        share,
        "of their time",
        target=0.98,
        details={"clips": num_clips, "round_trip_ms": 2},
        remark="leases take half to one and a half of their mean time",
    )
