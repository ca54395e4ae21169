"""How rows become parts of a plan: how many at a time, and the spans of one video together."""

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokpipe.plan.stored import PlanPart, read_part
from tokpipe.storage.store import Store

PART_ROWS = 65_536
_PART_BYTES = 32 * 2**20  # Long captions close a part early, because readers cache a few parts
_PARTS_AT_ONCE = 8  # Held in memory while their rows are put in order
_Hashes = NDArray[np.uint64]


def cut(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Join and cut batches to tables as large as parts should be."""
    held: list[pa.RecordBatch] = []
    num_rows = num_bytes = 0
    for whole in batches:
        # In steps, so that one batch of long captions does not become one huge part.
        steps = max(1, -(-whole.nbytes // _PART_BYTES))
        step = max(1, min(-(-whole.num_rows // steps), PART_ROWS))
        for start in range(0, whole.num_rows, step):
            batch = whole.slice(start, step)
            is_full = num_rows + batch.num_rows > PART_ROWS
            if held and (is_full or num_bytes + batch.nbytes > _PART_BYTES):
                yield pa.Table.from_batches(held)
                held, num_rows, num_bytes = [], 0, 0
            held.append(batch)
            num_rows += batch.num_rows
            num_bytes += batch.nbytes
    if num_rows:
        yield pa.Table.from_batches(held)


def videos_of(rows: pa.Table) -> _Hashes:
    """Return a hash per row of its source's URI; nothing if no row is a span of its source."""
    if all(rows.column(name).null_count == rows.num_rows for name in ("start_s", "end_s")):
        return np.empty(0, np.uint64)
    return _hash_videos(rows)


def _hash_videos(rows: pa.Table) -> _Hashes:
    uris = rows.column("source_uri").cast(pa.binary()).to_pylist()
    packed = b"".join(hashlib.blake2b(uri, digest_size=8).digest() for uri in uris)
    return np.frombuffer(packed, "<u8")


def order_by_video(rows: pa.Table, videos: _Hashes) -> NDArray[np.int64]:
    """Return the rows' positions by where their source first appears, then by their start.

    ``videos``: what ``videos_of`` returns.
    """
    if not len(videos):
        return np.arange(rows.num_rows)
    _, firsts, inverse = np.unique(videos, return_index=True, return_inverse=True)
    starts = rows.column("start_s").fill_null(0.0).to_numpy()
    return np.lexsort((starts, firsts[inverse]))


def do_recur(hashes: Sequence[_Hashes]) -> bool:
    """Whether rows of one source have others between them, by the hashes of each part."""
    values = np.concatenate(hashes)
    num_runs = np.count_nonzero(np.diff(values))
    values.sort()
    return bool(num_runs > np.count_nonzero(np.diff(values)))


def together(store: Store, parts: Sequence[PlanPart]) -> Iterator[pa.Table]:
    """Yield the rows of stored parts, those of one source together and in order of their start.

    Up to ``_PARTS_AT_ONCE`` parts keep the order in which sources first appear. More are divided
    by hash of the source, on local disk, and each division does.
    """
    num_files = -(-len(parts) // _PARTS_AT_ONCE)
    with tempfile.TemporaryDirectory(prefix="tokpipe-plan-") as folder, ExitStack() as stack:
        paths = [Path(folder, str(number)) for number in range(num_files)]
        writers = list[pa.ipc.RecordBatchStreamWriter]()
        for part in parts:
            rows = read_part(store, part)
            for path in paths[len(writers) :]:
                writers.append(stack.enter_context(pa.ipc.new_stream(path, rows.schema)))
            hashes = _hash_videos(rows)
            for number, writer in enumerate(writers):
                writer.write_table(rows.filter(pa.array(hashes % num_files == number)))
        stack.close()
        for path in paths:
            with pa.ipc.open_stream(path) as reader:
                rows = reader.read_all()
            order = order_by_video(rows, videos_of(rows))
            yield from cut(iter(rows.take(pa.array(order)).to_batches()))
