"""The same jobs by tokpipe and by what one would write otherwise, on the same machine in turn.

``clips`` are in a file each; ``spans`` follow one another in two long videos, and the table that
names them is shuffled.
"""

import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.by_hand import Codes, PeerRun, lacks_torchcodec, run_loop, run_pool
from benchmarks.figures import Figure, Result, Skipped
from benchmarks.processes import in_fresh_process, keep_to_cores
from benchmarks.ray_data import MISSING, run_ray_data
from benchmarks.sample_job import Row, job_over, long_spans, spans
from benchmarks.watched_run import cluster_of, run_watched
from tokpipe.reader import open_output

CORES = 2
Form = Callable[[Path, int], list[Row]]
FORMS: dict[str, tuple[Form, int]] = {"clips": (spans, 150), "spans": (long_spans, 150)}
"""Rows of each form, and how many."""
TARGETS = {("loop", "clips"): 1.2, ("ray_data", "clips"): 1.5, ("ray_data", "spans"): 3.0}


def run(quick: bool) -> Iterator[Result]:
    """Seconds of each peer over those of tokpipe, each without its start, which is a detail."""
    for form, (make, count) in FORMS.items():
        with tempfile.TemporaryDirectory() as folder:
            rows = make(Path(folder), 8 if quick else count)
            yield from _compare(form, rows, 1 if quick else 3)


def _compare(form: str, rows: list[Row], rounds: int) -> Iterator[Result]:
    ratios: dict[str, list[float]] = {name: [] for name in PEERS}
    details: dict[str, dict[str, float | int]] = {name: {} for name in PEERS}
    for _ in range(rounds):
        ours = in_fresh_process(_by_tokpipe, rows)
        for name, peer in PEERS.items():
            if peer.lacks is None:
                theirs = in_fresh_process(peer.run, rows)
                ratios[name].append(theirs.seconds / ours.seconds)
                details[name] = {
                    "clips": len(rows),
                    "rounds": rounds,
                    "equal_codes": _equal(ours, theirs),
                    "tokpipe_s": ours.seconds,
                    "tokpipe_start_s": ours.start_s,
                    "peer_s": theirs.seconds,
                    "peer_start_s": theirs.start_s,
                }
    for name, peer in PEERS.items():
        title = f"{form}: whole job against {peer.title}, {CORES} cores"
        if peer.lacks is None:
            yield Figure(
                *(title, statistics.median(ratios[name]), "x", TARGETS.get((name, form))),
                details=details[name],
                remark="from encoders being up to the last file; details are of the last round",
            )
        else:
            yield Skipped(title, peer.lacks)


def _equal(ours: PeerRun, theirs: PeerRun) -> float:
    """Fraction of equal codes; chunks in other batches may be rounded differently."""
    mine, other = ours.codes, theirs.codes
    assert mine.keys() == other.keys()
    return sum(int((mine[key] == other[key]).sum()) for key in mine) / sum(
        codes.size for codes in mine.values()
    )


def _by_tokpipe(rows: list[Row]) -> PeerRun:
    keep_to_cores(CORES)
    with tempfile.TemporaryDirectory() as folder, cluster_of(CORES) as address:
        runtime = {"cluster": address}
        job = job_over(Path(folder), rows, runtime=runtime)
        run = run_watched(job)
        assert run.ready is not None
        codes: Codes = {}
        for clip in open_output(job.output.uri, job.storage).clips():
            (chunk,) = clip.chunks
            key = Path(clip.source_uri).name, clip.metadata["begins"]
            codes[key] = chunk.codes.astype(np.uint16).ravel()
    return PeerRun(run.seconds, run.ready - run.began, codes)


@dataclass(frozen=True)
class Peer:
    """Another way to do the same."""

    title: str
    run: Callable[[list[Row]], PeerRun]
    lacks: str | None = None
    """What it needs that is not here."""


def _by_loop(rows: list[Row]) -> PeerRun:
    keep_to_cores(CORES)
    with tempfile.TemporaryDirectory() as folder:
        return run_loop(Path(folder), rows, num_workers=CORES)


def _by_pool(rows: list[Row], *, by_torchcodec: bool = False) -> PeerRun:
    keep_to_cores(CORES)
    with tempfile.TemporaryDirectory() as folder:
        return run_pool(Path(folder), rows, CORES, by_torchcodec=by_torchcodec)


def _by_ray_data(rows: list[Row], *, as_advised: bool = False) -> PeerRun:
    keep_to_cores(CORES)
    # Its tasks for reading and for checkpoints want whole CPUs, beside those of the actors.
    num_cpus = 2 * CORES if as_advised else CORES
    with tempfile.TemporaryDirectory() as folder, cluster_of(num_cpus) as address:
        return run_ray_data(address, Path(folder), rows, as_advised=as_advised)


PEERS = {
    "loop": Peer("a DataLoader loop", _by_loop),
    "pool": Peer("a pool of processes with PyAV", _by_pool),
    "torchcodec": Peer(
        "a pool of processes with torchcodec",
        partial(_by_pool, by_torchcodec=True),
        lacks_torchcodec(),
    ),
    "ray_data": Peer("Ray Data by hand", _by_ray_data, MISSING),
    "ray_data_advised": Peer(
        "Ray Data with a checkpoint and pools of actors",
        partial(_by_ray_data, as_advised=True),
        MISSING,
    ),
}
