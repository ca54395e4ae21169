"""Codes per second of the reader against raw arrays and against pyarrow alone."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.coded import BLOCK, CHUNKS_PER_CLIP, CODES_PER_CLIP, write_shards
from benchmarks.figures import Figure, Result
from benchmarks.timing import by_turns, ratio
from tokpipe.reader import CodeCache, open_output

COLUMNS = ["clip_id", "chunk_index", "codes"]


def run(quick: bool) -> Iterator[Result]:
    """First epoch against pyarrow, later epochs against ``numpy.memmap``, from a local disk.

    All files are in the page cache, so that code is measured and not the disk.
    """
    num_shards, clips_per_shard = (3, 20) if quick else (4, 1000)
    with TemporaryDirectory() as name:
        folder = Path(name)
        num_codes = num_shards * clips_per_shard * CODES_PER_CLIP
        rows = num_shards * clips_per_shard * CHUNKS_PER_CLIP
        raw = np.memmap(folder / "raw", "<u2", "w+", shape=(rows, *BLOCK))
        shards = write_shards(
            folder, "Zipf", num_shards=num_shards, clips_per_shard=clips_per_shard
        )
        at = 0
        for codes in shards:
            raw[at : at + codes.shape[0] * CHUNKS_PER_CLIP] = codes.reshape(-1, *BLOCK)
            at += codes.shape[0] * CHUNKS_PER_CLIP
        raw.flush()
        del raw
        yield from _first_epoch(folder, num_codes, rounds=3 if quick else 9)
        yield from _later_epochs(folder, num_codes, rounds=3 if quick else 15)


def _first_epoch(folder: Path, num_codes: int, rounds: int) -> Iterator[Result]:
    output = open_output(str(folder / "out"))
    paths = [folder / "out" / shard.key for shard in output.shards]
    cache = folder / "first"

    def pyarrow() -> None:
        for path in paths:
            file = pq.ParquetFile(path, page_checksum_verification=True)
            for group in range(file.num_row_groups):
                file.read_row_group(group, COLUMNS)

    def verified() -> None:
        for _ in output.iter_batches(COLUMNS):
            pass

    def cached() -> None:
        shutil.rmtree(cache, ignore_errors=True)
        for _ in CodeCache(output, cache):
            pass

    contestants: dict[str, Callable[[], None]] = {
        "pyarrow": pyarrow,
        "verified": verified,
        "cached": cached,
    }
    wall = by_turns(contestants, rounds=rounds)
    cpu = by_turns(contestants, rounds=rounds, clock=time.process_time)
    for name, title, target in (
        ("verified", "reader: first epoch, verified, against pyarrow with page checksums", 0.8),
        ("cached", "reader: first epoch that fills the local cache, against the same", None),
    ):
        yield Figure(
            title,
            ratio(wall["pyarrow"], wall[name]),
            "x",
            target,
            details={
                "codes_per_s": round(num_codes / wall[name].median),
                "pyarrow_codes_per_s": round(num_codes / wall["pyarrow"].median),
                "by_cpu_time": round(ratio(cpu["pyarrow"], cpu[name]), 3),
            },
        )


def _later_epochs(folder: Path, num_codes: int, rounds: int) -> Iterator[Result]:
    cache = CodeCache(open_output(str(folder / "out")), folder / "cache")
    raw = np.memmap(folder / "raw", "<u2", "r").reshape(-1, *BLOCK)
    shards = list(cache)  # the first epoch
    block: NDArray[np.uint16] = np.empty(BLOCK, np.uint16)
    order = np.random.default_rng(0).permutation(len(raw)).tolist()
    per_shard = len(raw) // len(shards)
    pairs = [divmod(row, per_shard) for row in order]
    for row, (number, place) in zip(order, pairs, strict=True):
        assert np.array_equal(shards[number][place], raw[row])

    def raw_in_order() -> None:
        for row in range(len(raw)):
            block[:] = raw[row]

    def cached_in_order() -> None:
        for shard in cache:
            for codes in shard:
                block[:] = codes

    def raw_at_random() -> None:
        for row in order:
            block[:] = raw[row]

    def cached_at_random() -> None:
        for number, row in pairs:
            block[:] = shards[number][row]

    for title, ours, theirs in (
        ("rows in order", cached_in_order, raw_in_order),
        ("rows at random", cached_at_random, raw_at_random),
    ):
        contestants: dict[str, Callable[[], None]] = {"ours": ours, "raw": theirs}
        wall = by_turns(contestants, rounds=rounds)
        yield Figure(
            f"reader: second epoch, {title}, against numpy.memmap",
            ratio(wall["raw"], wall["ours"]),
            "x",
            0.5,
            details={
                "codes_per_s": round(num_codes / wall["ours"].median),
                "memmap_codes_per_s": round(num_codes / wall["raw"].median),
            },
        )
