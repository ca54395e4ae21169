"""The same job by tokpipe, by a DataLoader loop and by Ray Data, on the same machine by turns."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.by_hand import read_codes, run_loop
from benchmarks.figures import Figure, Result, Skipped
from benchmarks.processes import in_fresh_process, keep_to_cores
from benchmarks.ray_data import MISSING, run_ray_data
from benchmarks.sample_job import sample_job, spans
from benchmarks.watched_run import cluster_of, run_watched
from tokpipe.reader import open_output

CORES = 2
Codes = dict[str, NDArray[np.uint16]]


@dataclass(frozen=True)
class _Run:
    seconds: float
    start_s: float
    codes: Codes


def run(quick: bool) -> Iterator[Result]:
    """Seconds of each peer over those of tokpipe. Starting up is told apart for all of them."""
    count, rounds = (8, 1) if quick else (150, 3)
    loop: list[float] = []
    by_ray: list[float] = []
    details: dict[str, float | int] = {}
    for _ in range(rounds):
        ours = in_fresh_process(_by_tokpipe, count)
        theirs = in_fresh_process(_by_loop, count)
        loop.append(theirs.seconds / ours.seconds)
        details = {
            "clips": count,
            "rounds": rounds,
            "tokpipe_s": ours.seconds,
            "tokpipe_start_s": ours.start_s,
            "loop_s": theirs.seconds,
            "loop_start_s": theirs.start_s,
            "equal_codes": _share_equal(ours.codes, theirs.codes),
        }
        if MISSING is None:
            third = in_fresh_process(_by_ray_data, count)
            by_ray.append(third.seconds / ours.seconds)
            details["ray_data_s"] = third.seconds
            details["ray_data_start_s"] = third.start_s
            details["ray_data_equal_codes"] = _share_equal(ours.codes, third.codes)
    remark = "from encoders being up to the last file; details are of the last round"
    yield Figure(
        f"whole job against a DataLoader loop, {CORES} cores",
        statistics.median(loop),
        "x",
        target=1.0,
        details=details,
        remark=remark,
    )
    name = f"whole job against Ray Data by hand, {CORES} cores"
    if by_ray:
        yield Figure(
            name, statistics.median(by_ray), "x", target=1.2, details=details, remark=remark
        )
    else:
        assert MISSING is not None
        yield Skipped(name, MISSING)


def _share_equal(ours: Codes, theirs: Codes) -> float:
    """Share of codes that are the same; chunks of other batches may be rounded otherwise."""
    assert ours.keys() == theirs.keys()
    same = sum(int((ours[path] == theirs[path]).sum()) for path in ours)
    return same / sum(codes.size for codes in ours.values())


def _by_tokpipe(count: int) -> _Run:
    keep_to_cores(CORES)
    with tempfile.TemporaryDirectory() as folder, cluster_of(CORES) as address:
        job = sample_job(Path(folder), count, runtime={"cluster": address})
        run = run_watched(job)
        assert run.ready is not None
        codes = {}
        for clip in open_output(job.output.uri, job.storage).clips():
            (chunk,) = clip.chunks
            codes[Path(clip.source_uri).name] = chunk.codes.astype(np.uint16).ravel()
    return _Run(run.seconds, run.ready - run.began, codes)


def _by_loop(count: int) -> _Run:
    keep_to_cores(CORES)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        told = run_loop(folder, spans(folder, count), num_workers=CORES)
        return _Run(told.seconds, told.start_s, _by_name(read_codes(folder / "loop")))


def _by_ray_data(count: int) -> _Run:
    keep_to_cores(CORES)
    with tempfile.TemporaryDirectory() as name, cluster_of(CORES) as address:
        folder = Path(name)
        told = run_ray_data(address, folder, spans(folder, count))
        return _Run(told.seconds, told.start_s, _by_name(read_codes(folder / "ray_data")))


def _by_name(codes: Codes) -> Codes:
    return {Path(path).name: block for path, block in codes.items()}
