"""The same job by tokpipe, by a DataLoader loop and by Ray Data, on the same machine in turn."""

import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.by_hand import Codes, PeerRun, run_loop
from benchmarks.figures import Figure, Result, Skipped
from benchmarks.processes import in_fresh_process, keep_to_cores
from benchmarks.ray_data import MISSING, run_ray_data
from benchmarks.sample_job import sample_job, spans
from benchmarks.watched_run import cluster_of, run_watched
from tokpipe.reader import open_output

CORES = 2


def run(quick: bool) -> Iterator[Result]:
    """Seconds of each peer over those of tokpipe, each without its start, which is a detail."""
    count, rounds = (8, 1) if quick else (150, 3)
    peers: dict[str, Callable[[int], PeerRun]] = {"loop": _by_loop}
    if MISSING is None:
        peers["ray_data"] = _by_ray_data
    ratios: dict[str, list[float]] = {name: [] for name in peers}
    details: dict[str, float | int] = {}
    for _ in range(rounds):
        ours = in_fresh_process(_by_tokpipe, count)
        details |= {"clips": count, "rounds": rounds}
        details |= {"tokpipe_s": ours.seconds, "tokpipe_start_s": ours.start_s}
        for name, call in peers.items():
            theirs = in_fresh_process(call, count)
            ratios[name].append(theirs.seconds / ours.seconds)
            details[f"{name}_s"] = theirs.seconds
            details[f"{name}_start_s"] = theirs.start_s
            details[f"{name}_equal_codes"] = _equal_fraction(ours.codes, theirs.codes)
    for name, title, target in (
        ("loop", f"whole job against a DataLoader loop, {CORES} cores", 1.0),
        ("ray_data", f"whole job against Ray Data by hand, {CORES} cores", 1.2),
    ):
        if name in ratios:
            yield Figure(
                *(title, statistics.median(ratios[name]), "x", target),
                details=details,
                remark="from encoders being up to the last file; details are of the last round",
            )
        else:
            yield Skipped(title, str(MISSING))


def _equal_fraction(ours: Codes, theirs: Codes) -> float:
    """Fraction of equal codes; chunks in other batches may be rounded differently."""
    assert ours.keys() == theirs.keys()
    same = sum(int((ours[path] == theirs[path]).sum()) for path in ours)
    return same / sum(codes.size for codes in ours.values())


def _by_tokpipe(count: int) -> PeerRun:
    keep_to_cores(CORES)
    with tempfile.TemporaryDirectory() as folder, cluster_of(CORES) as address:
        job = sample_job(Path(folder), count, runtime={"cluster": address})
        run = run_watched(job)
        assert run.ready is not None
        codes = {}
        for clip in open_output(job.output.uri, job.storage).clips():
            (chunk,) = clip.chunks
            codes[Path(clip.source_uri).name] = chunk.codes.astype(np.uint16).ravel()
    return PeerRun(run.seconds, run.ready - run.began, codes)


def _by_loop(count: int) -> PeerRun:
    keep_to_cores(CORES)
    with tempfile.TemporaryDirectory() as folder:
        return run_loop(Path(folder), spans(Path(folder), count), num_workers=CORES)


def _by_ray_data(count: int) -> PeerRun:
    keep_to_cores(CORES)
    with tempfile.TemporaryDirectory() as folder, cluster_of(CORES) as address:
        return run_ray_data(address, Path(folder), spans(Path(folder), count))
