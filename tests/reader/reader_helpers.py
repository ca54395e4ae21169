"""Writes small outputs, as a job does, for tests of the reader."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa

from tests.formats.formats_helpers import DictStore, encoded_clip, record, shard_metadata
from tokpipe.formats.job_record import write_once
from tokpipe.formats.manifest import ManifestEntry, append
from tokpipe.formats.shard import build_shard, receipt_of
from tokpipe.formats.side_table import build_side_table
from tokpipe.storage.store import Store
from tokpipe.types import EncodedClip, Receipt, Rejected

NUM_ROWS = 1000


def begin(store: Store, codebook_size: int = 8192, rows: Iterable[int] = (-1,)) -> None:
    """Write the job's record. The output lists nothing yet.

    Its plan has just these ``rows`` if they are the first ones, and otherwise ``NUM_ROWS``.
    """
    found = set(rows)
    num_rows = len(found) if found == set(range(len(found))) else NUM_ROWS
    write_once(store, record(codebook_size=codebook_size, num_rows=num_rows))


def put_shard(
    store: Store,
    name: str,
    clips: Sequence[EncodedClip],
    codebook_size: int = 8192,
    carried: pa.Table | None = None,
) -> Receipt:
    """Put a shard and its side table, without listing them.

    It carries the caption ``caption <plan row>``, or the columns of ``carried``.
    """
    shard = build_shard(clips, shard_metadata(codebook_size))
    if carried is None:
        carried = pa.table({"caption": [f"caption {clip.ref.row}" for clip in clips]})
    side_table = build_side_table(clips, carried)
    receipt = receipt_of(name, clips, shard, side_table)
    store.put(receipt.shard, shard)
    store.put(receipt.side_table, side_table)
    return receipt


def commit(store: Store, seq: int, *receipts: Receipt, rejected: Sequence[Rejected] = ()) -> None:
    assert append(store, ManifestEntry(seq, "driver-1", "now", receipts, tuple(rejected)))


def store_with(*shards: Sequence[EncodedClip], codebook_size: int = 8192) -> DictStore:
    """A store with an output that has an entry for each shard: ``p-1-a``, ``p-2-a`` and so on."""
    store = DictStore()
    begin(store, codebook_size, (clip.ref.row for clips in shards for clip in clips))
    for seq, clips in enumerate(shards):
        commit(store, seq, put_shard(store, f"p-{seq + 1}-a", clips, codebook_size))
    return store


def write_clips(
    store: Store,
    shard_sizes: Sequence[int],
    num_chunks: Callable[[int], int] = lambda row: 1,
    *,
    first_row: int = 0,
) -> None:
    """Write an output with this many clips in each shard. Its rows begin with ``first_row``."""
    begin(store, rows=range(first_row, first_row + sum(shard_sizes)))
    row, receipts = first_row, []
    for size in shard_sizes:
        clips = [encoded_clip(one, [5] * num_chunks(one)) for one in range(row, row + size)]
        receipts.append(put_shard(store, f"s{row}", clips))
        row += size
    if receipts:
        commit(store, 0, *receipts)


def store_carrying(*tables: pa.Table) -> DictStore:
    """A store with an output that has a shard for each table, whose rows its clips carry."""
    store, row = DictStore(), 0
    begin(store, rows=range(sum(map(len, tables))))
    for seq, table in enumerate(tables):
        clips = [encoded_clip(one, (5,)) for one in range(row, row + len(table))]
        commit(store, seq, put_shard(store, f"p-{seq}-a", clips, carried=table))
        row += len(table)
    return store


def ids(samples: Iterable[Any]) -> list[str]:
    return [sample["clip_id"] for sample in samples]
