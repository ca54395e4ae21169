"""What a node fetches and how much memory it takes to read an epoch, alone and among others."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.coded import CODES_PER_CLIP, write_shards
from benchmarks.figures import Figure, Result
from benchmarks.processes import measured, resident_mb
from tokpipe.reader import ClipStream, CodeCache, open_output
from tokpipe.reader.columns import ShardColumns

NUM_NODES = (1, 2, 8)
_CACHED_FRACTION = 0.1  # Of what all shards take once they are decoded


def run(quick: bool) -> Iterator[Result]:
    """An epoch of 50 million codes over simulated nodes, whose caches hold a tenth of it.

    The nodes run one after another. Each takes its clips of the epoch, in a process of its own.
    """
    num_shards, clips_per_shard = (12, 5) if quick else (48, 51)
    with TemporaryDirectory() as name:
        folder = Path(name)
        for _ in write_shards(
            folder, "Zipf", num_shards=num_shards, clips_per_shard=clips_per_shard
        ):
            pass
        localities: tuple[Literal["node"] | None, ...] = (None, "node")
        for locality in localities:
            for num_nodes in NUM_NODES:
                yield _epoch(folder, num_nodes, locality)
    yield _captions(10_000 if quick else 1_000_000)


def _epoch(folder: Path, num_nodes: int, locality: Literal["node"] | None) -> Result:
    whole = sum(info.size_bytes for info in open_output(str(folder / "out")).shards)
    cache = folder / f"cache-{locality}-{num_nodes}"
    found = [measured(_read, folder, cache, node, num_nodes, locality) for node in range(num_nodes)]
    results = [one.result for one in found]
    return Figure(
        f"reader: fetched per node, {num_nodes} nodes, locality={locality and f'{locality}'}",
        max(one["fetched"] for one in results) / whole,
        "x of the output",
        better="lower",
        details={
            "codes": sum(one["clips"] for one in results) * CODES_PER_CLIP,
            "output_mb": round(whole / 1e6, 1),
            "shards_made": max(one["made"] for one in results),
            "window_shards": results[0]["window_shards"],
            "cache_mb": max(one["cache_mb"] for one in results),
            "peak_mb": round(max(one.peak_gb for one in found) * 1e3),
            "before_mb": round(max(one.before_gb for one in found) * 1e3),
        },
    )


def _read(
    folder: Path, cache: Path, node: int, num_nodes: int, locality: Literal["node"] | None
) -> dict[str, Any]:
    output, fetched = open_output(str(folder / "out")), list[int]()
    get_range = output.store.get_range

    def counted(key: str, start: int, end: int) -> bytes:
        data = get_range(key, start, end)
        fetched.append(len(data))
        return data

    output.store.get_range = counted  # type: ignore[method-assign]
    decoded = int(sum(info.num_codes for info in output.shards)) * 2
    codes = CodeCache(
        output, cache / f"{node}", max_bytes=int(_CACHED_FRACTION * decoded), allow_partial=True
    )
    stream = ClipStream(
        codes, rank=node, world_size=num_nodes, locality=locality, num_nodes=num_nodes
    )
    clips = sum(1 for _ in stream)
    return {
        "clips": clips,
        "fetched": sum(fetched),
        "made": len(fetched),
        "window_shards": iter(stream).state_dict()["window_shards"],
        "cache_mb": sum(path.stat().st_size for path in (cache / f"{node}").glob("*.*")) // 10**6,
    }


def _captions(num_rows: int) -> Result:
    with TemporaryDirectory() as name:
        found = measured(_read_captions, Path(name) / "captions", num_rows)
    return Figure(
        "reader: memory per clip for captions and their ids",
        found.result,
        "bytes",
        better="lower",
        details={"rows": num_rows},
        remark="mapped files are not counted: the system can drop their pages",
    )


def _read_captions(path: Path, num_rows: int) -> float:
    schema = pa.schema([("clip_id", pa.string()), ("caption", pa.string())])
    with pa.ipc.new_file(str(path), schema) as writer:
        ids = pc.utf8_lpad(pa.array(range(num_rows)).cast(pa.string()), 32, "0")
        captions = pc.binary_join_element_wise("a person in the red street walks", ids, " ")
        writer.write_batch(pa.record_batch([ids, captions], schema=schema))
        del ids, captions
    pa.default_memory_pool().release_unused()
    before = resident_mb()
    columns = ShardColumns(path, str(path))
    for row in range(num_rows):
        columns.of(row, f"{row:032}")
    return (resident_mb() - before) * 2**20 / num_rows
