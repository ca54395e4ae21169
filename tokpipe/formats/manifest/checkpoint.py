"""Checkpoints: the state of a manifest, saved now and then so that loading reads few objects.

A checkpoint is only a shortcut. The entries before it determine it, any driver may write it, and
a missing or damaged one costs only time.
"""

import base64
import logging
import zlib
from dataclasses import asdict
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, TypeAdapter

from tokpipe.errors import CorruptOutput, NotFound
from tokpipe.formats.checks import as_damage, check_bytes, damaged, in_brief, sha256
from tokpipe.formats.layout import checkpoint_key, checkpoint_shards_key
from tokpipe.formats.manifest.committed import CommittedRows, PartialRow
from tokpipe.formats.manifest.entry import Growth, Tail
from tokpipe.formats.manifest.log import count_entries, iter_entries, read_entry
from tokpipe.formats.manifest.state import SHARD_LIST_SCHEMA, UNRECORDED, ManifestState, Totals
from tokpipe.formats.sealed_json import dump_lines, read_sealed, seal, unseal
from tokpipe.formats.tables import check_texts, from_parquet, to_parquet
from tokpipe.storage.store import Store
from tokpipe.types import SHA256, SHARD_KEY, SIDE_TABLE_KEY, Count, Positive

_log = logging.getLogger(__name__)

CHECKPOINT_FORMAT = 3
"""2 since entries of format 3, and 3 if the plan grew or shards were replaced; otherwise 1."""

CHECKPOINT_INTERVAL = 64


def checkpoint_spacing(seq: int, interval: int = CHECKPOINT_INTERVAL) -> int:
    """Return the number that checkpoints near entry ``seq`` are at multiples of.

    Each lists all shards, so they thin out: all together take at most fifty times the space of the
    last, which at most a 32nd of the entries follow.
    """
    return interval << max(0, (seq // interval).bit_length() - 6)


def load_state(
    store: Store,
    num_rows: int,
    *,
    interval: int = CHECKPOINT_INTERVAL,
    known: ManifestState | None = None,
) -> ManifestState:
    """Return the state of an output's manifest, whose plan began with ``num_rows`` rows.

    With checkpoints this takes one listing of the manifest and a few dozen requests. From an
    earlier state that is ``known``, and that this may change, it takes no listing.

    CorruptOutput if an entry is damaged or missing, or contradicts others or the plan.
    """
    state = ManifestState(CommittedRows(num_rows)) if known is None else known
    num_entries = count_entries(store, state.next_seq)
    seq = num_entries if num_entries - state.next_seq >= interval else 0
    while (seq := seq - seq % checkpoint_spacing(seq, interval)) > state.next_seq:
        try:
            state = read_checkpoint(store, seq, num_rows)  # the newest one that can be read
        except NotFound:
            pass
        except CorruptOutput as error:
            _log.warning("skipping a damaged checkpoint: %s", error)
        seq -= 1
    for entry in iter_entries(store, state.next_seq, num_entries, after=state.tail):
        state.apply(entry)
    return state


def write_checkpoint(store: Store, state: ManifestState) -> bool:
    """Save ``state`` as the checkpoint before entry ``state.next_seq``.

    Creates the table of shards, then the record with its hash: a crash between the two leaves a
    table that nobody reads. Returns False if something else is in the place of either.
    """
    table = to_parquet(state.shards)
    if not store.create(checkpoint_shards_key(state.next_seq), table):
        return False
    record = dump_lines(seal(record_of(state, table)))
    return store.create(checkpoint_key(state.next_seq), record)


def read_checkpoint(store: Store, seq: int, num_rows: int) -> ManifestState:
    """Return the state before entry ``seq``, whose plan began with ``num_rows`` rows.

    Raises:
        NotFound: the checkpoint does not exist, or only half of it does.
        CorruptOutput: it is damaged, or belongs to another plan.
    """
    uri = store.uri_of(checkpoint_key(seq))
    data = read_sealed(store, checkpoint_key(seq))
    record = unseal(uri, data, newest_format=CHECKPOINT_FORMAT)
    kinds = KeyError, TypeError, ValueError, zlib.error
    with as_damage(uri, "it does not parse as a checkpoint", *kinds):
        growth = _GROWTH.validate_python(record.get("growth", []))
        num_rows += sum(one.num_rows for one in growth)
        if (record["seq"], record["num_rows"]) != (seq, num_rows):
            raise ValueError(f"it is for entry {record['seq']} and {record['num_rows']} plan rows")
        committed = CommittedRows(
            num_rows,
            # Bounded by the size of the plan; CommittedRows rejects a longer bitmap.
            zlib.decompressobj().decompress(
                base64.b64decode(record["bitmap"]), max_length=num_rows // 8 + 2
            ),
            {
                row: PartialRow(num_segments, done)
                for row, num_segments, done in _PARTIAL.validate_python(record["partial"])
            },
        )
        # By name, so that a field that an older tokpipe did not count is an error, not zero.
        found = record["totals"]
        found = {"encoders": {UNRECORDED: found["num_clips"]}, "slow_s": {}, **found}
        totals = _TOTALS.validate_python({field: found[field] for field in Totals.__slots__})
        num_removals = _COUNT.validate_python(record.get("removals", 0))
        size_bytes = _COUNT.validate_python(record["shards_size_bytes"])
        sha256_hex = record["shards_sha256"]
        # Earlier versions did not write the tail.
        tail = _TAIL.validate_python(record.get("tail") or read_entry(store, seq - 1).tail)
    uri = store.uri_of(checkpoint_shards_key(seq))
    table = store.get_range(checkpoint_shards_key(seq), 0, size_bytes + 1)
    check_bytes(uri, table, size_bytes=size_bytes, sha256_hex=sha256_hex)
    shards = _read_table(uri, table)
    return ManifestState(committed, seq, totals, shards, tail, growth, num_removals)


_PARTIAL = TypeAdapter(list[tuple[Count, Positive, Annotated[set[Count], Field(min_length=1)]]])
_TOTALS, _COUNT, _TAIL = TypeAdapter(Totals), TypeAdapter(Count), TypeAdapter(Tail)
_GROWTH = TypeAdapter(list[Growth])


def record_of(state: ManifestState, table: bytes) -> dict[str, Any]:
    """Return the checkpoint's JSON, which depends only on the entries before it."""
    totals = {field: getattr(state.totals, field) for field in Totals.__slots__}
    is_newest = state.growth or state.num_removals
    return {
        "format": CHECKPOINT_FORMAT if is_newest else 1 + state.tail.is_linked,
        "seq": state.next_seq,
        "tail": state.tail,
        **({"growth": [asdict(one) for one in state.growth]} if state.growth else {}),
        **({"removals": state.num_removals} if state.num_removals else {}),
        "totals": {**totals, "rejected": dict(sorted(state.totals.rejected.items()))},
        "num_rows": state.committed.num_rows,
        "shards_size_bytes": len(table),
        "shards_sha256": sha256(table),
        "partial": [
            [row, partial.num_segments, sorted(partial.done)]
            for row, partial in sorted(state.committed.partial.items())
        ],
        # zlib in base64, lowest bit first; a bit is set when its plan row is fully settled.
        "bitmap": base64.b64encode(zlib.compress(state.committed.bitmap)).decode(),
    }


def _read_table(uri: str, data: bytes) -> pa.Table:
    table = from_parquet(uri, data, "table of shards")
    if table.schema != SHARD_LIST_SCHEMA:
        raise damaged(uri, f"its columns are {in_brief(table.schema.to_string())}")
    for column in filter(lambda one: len(one) and pa.types.is_integer(one.type), table.columns):
        if not 0 <= pc.min(column).as_py() <= pc.max(column).as_py() <= 2**40:
            raise damaged(uri, "its counts are not those of shards")
    hashes = {"sha256": SHA256, "side_table_sha256": SHA256}
    check_texts(uri, table, shard=SHARD_KEY, side_table=SIDE_TABLE_KEY, **hashes)
    return table
