"""A hundred defects to plant in a clean output, by family, each a function of a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from tests.audit.outputs import (
    CUT_ROW,
    Made,
    edit,
    entry_of,
    finished,
    flip,
    made,
    parquet_edited,
    put,
    swap,
    truncate,
)
from tokpipe.formats.checks import sha256
from tokpipe.formats.layout import entry_key
from tokpipe.formats.manifest import (
    CommittedRows,
    ManifestEntry,
    ManifestState,
    append,
    write_checkpoint,
)
from tokpipe.formats.shard import codes_crc32
from tokpipe.types import ClipRef, Receipt

NUM_ENTRIES = 8
Rng = np.random.Generator
Plant = Callable[[Made, Rng, Path], None]


def _seq(rng: Rng) -> int:
    return int(rng.integers(NUM_ENTRIES))


def _shard(output: Made, rng: Rng) -> Receipt:
    return entry_of(output.store, _seq(rng)).shards[0]


def _two(rng: Rng) -> tuple[int, int]:
    one, other = rng.choice(NUM_ENTRIES, 2, replace=False).tolist()
    return one, other


def _some_key(output: Made, rng: Rng, what: str) -> str:
    if what == "shard":
        return _shard(output, rng).shard
    if what == "side table":
        return _shard(output, rng).side_table
    if what == "entry":
        return entry_key(_seq(rng))
    if what == "plan":
        return "plan/driver/00000.parquet"
    if what == "checkpoint":
        return "manifest/00000004.checkpoint.json"
    if what == "checkpoint table":
        return "manifest/00000004.checkpoint.parquet"
    return "job.json"


def _flipped(what: str) -> Plant:
    return lambda output, rng, root: flip(output.store, _some_key(output, rng, what), rng)


def _truncated(what: str) -> Plant:
    return lambda output, rng, root: truncate(output.store, _some_key(output, rng, what), rng)


def _deleted(what: str) -> Plant:
    return lambda output, rng, root: output.store.delete(_some_key(output, rng, what))


def _swapped_shards(output: Made, rng: Rng, root: Path) -> None:
    one, other = _two(rng)
    store = output.store
    swap(store, entry_of(store, one).shards[0].shard, entry_of(store, other).shards[0].shard)


def _swapped_side_tables(output: Made, rng: Rng, root: Path) -> None:
    one, other = (entry_of(output.store, seq).shards[0].side_table for seq in _two(rng))
    swap(output.store, one, other)


def _swapped_entries(output: Made, rng: Rng, root: Path) -> None:
    one, other = _two(rng)
    swap(output.store, entry_key(one), entry_key(other))


def _last_entries_missing(output: Made, rng: Rng, root: Path) -> None:
    for seq in range(NUM_ENTRIES - int(rng.integers(1, 4)), NUM_ENTRIES):
        output.store.delete(entry_key(seq))


def _shard_listed_twice(output: Made, rng: Rng, root: Path) -> None:
    receipt = _shard(output, rng)
    assert append(output.store, ManifestEntry(NUM_ENTRIES, "driver", "later", (receipt,)))


def _copy_listed(output: Made, rng: Rng, root: Path) -> None:
    """The clips of a shard a second time, under another name."""
    refs = _shard(output, rng).clips
    receipt = put(output, "again", refs, seed=1)
    assert append(output.store, ManifestEntry(NUM_ENTRIES, "driver", "later", (receipt,)))


def _renumbered(output: Made, rng: Rng, root: Path) -> None:
    edit(output.store, _seq(rng), lambda entry: replace(entry, seq=entry.seq + 1))


def _with_clip(output: Made, rng: Rng, change: Callable[[ClipRef], ClipRef]) -> None:
    """Change one tokenized clip of one entry."""

    def edited(entry: ManifestEntry) -> ManifestEntry:
        receipt = entry.shards[0]
        clips = list(receipt.clips)
        at = int(rng.integers(len(clips)))
        clips[at] = change(clips[at])
        return replace(entry, shards=(replace(receipt, clips=tuple(clips)),))

    edit(output.store, _seq(rng), edited)


def _clip_id_changed(output: Made, rng: Rng, root: Path) -> None:
    _with_clip(output, rng, lambda clip: replace(clip, clip_id=clip.clip_id[::-1]))


def _row_changed(output: Made, rng: Rng, root: Path) -> None:
    _with_clip(output, rng, lambda clip: replace(clip, row=(clip.row + 1) % 30))


def _row_outside(output: Made, rng: Rng, root: Path) -> None:
    _with_clip(output, rng, lambda clip: replace(clip, row=clip.row + 1000))


def _source_changed(output: Made, rng: Rng, root: Path) -> None:
    _with_clip(output, rng, lambda clip: replace(clip, source_uri=clip.source_uri + "x"))


def _segment_changed(output: Made, rng: Rng, root: Path) -> None:
    def edited(entry: ManifestEntry) -> ManifestEntry:
        receipt = entry.shards[0]
        clips = tuple(
            replace(clip, segment=(clip.segment + 1) % 3) if clip.row == CUT_ROW else clip
            for clip in receipt.clips
        )
        return replace(entry, shards=(replace(receipt, clips=clips),))

    edit(output.store, 1, edited)


def _clip_moved(output: Made, rng: Rng, root: Path) -> None:
    """A clip listed with another shard than the one that holds it."""
    one, other = _two(rng)
    moved = entry_of(output.store, one).shards[0].clips[0]

    def without(entry: ManifestEntry) -> ManifestEntry:
        receipt = entry.shards[0]
        return replace(entry, shards=(replace(receipt, clips=receipt.clips[1:]),))

    def with_it(entry: ManifestEntry) -> ManifestEntry:
        receipt = entry.shards[0]
        return replace(entry, shards=(replace(receipt, clips=(*receipt.clips, moved)),))

    edit(output.store, one, without)
    edit(output.store, other, with_it)


def _counted(field: str) -> Plant:
    def plant(output: Made, rng: Rng, root: Path) -> None:
        def edited(entry: ManifestEntry) -> ManifestEntry:
            receipt = entry.shards[0]
            more = {field: getattr(receipt, field) + int(rng.integers(1, 100))}
            return replace(entry, shards=(replace(receipt, **more),))

        edit(output.store, _seq(rng), edited)

    return plant


def _grid_changed(output: Made, rng: Rng, root: Path) -> None:
    def edited(entry: ManifestEntry) -> ManifestEntry:
        receipt = entry.shards[0]
        return replace(entry, shards=(replace(receipt, grid=receipt.grid[::-1]),))

    edit(output.store, _seq(rng), edited)


def _rejection_removed(output: Made, rng: Rng, root: Path) -> None:
    edit(output.store, int(rng.integers(2)), lambda entry: replace(entry, rejected=()))


def _rejection_of_a_tokenized_clip(output: Made, rng: Rng, root: Path) -> None:
    clip = _shard(output, rng).clips[0]
    edit(
        output.store,
        0,
        lambda entry: replace(entry, rejected=(replace(entry.rejected[0], ref=clip),)),
    )


def _shard_removed_from_entry(output: Made, rng: Rng, root: Path) -> None:
    edit(output.store, _seq(rng), lambda entry: replace(entry, shards=()))


def relist(output: Made, seq: int, shard: bytes) -> None:
    """Put another shard in the place of one, and list it with the right size and hash."""
    key = entry_of(output.store, seq).shards[0].shard
    output.store.put(key, shard)

    def edited(entry: ManifestEntry) -> ManifestEntry:
        listed = replace(entry.shards[0], size_bytes=len(shard), sha256=sha256(shard))
        return replace(entry, shards=(listed,))

    edit(output.store, seq, edited)


def _foreign_fingerprint(output: Made, rng: Rng, root: Path) -> None:
    """The same clips with other codes' fingerprint, listed with the right hash."""
    seq = _seq(rng)
    other = with_other_fingerprint(output, root)
    receipt = put(other, f"foreign{seq}", entry_of(output.store, seq).shards[0].clips)
    relist(output, seq, other.store.get(receipt.shard))


def with_other_fingerprint(output: Made, root: Path) -> Made:
    """An output of the same plan whose shards say another fingerprint."""
    other = made(root / "foreign")
    other.write.metadata = replace(other.write.metadata, fingerprint="0" * 32)
    return other


def _edited_codes(change: Callable[[pa.Table, Rng], pa.Table]) -> Plant:
    def plant(output: Made, rng: Rng, root: Path) -> None:
        seq = _seq(rng)
        data = output.store.get(entry_of(output.store, seq).shards[0].shard)
        relist(output, seq, parquet_edited(data, lambda table: change(table, rng)))

    return plant


def _set(table: pa.Table, name: str, values: list[object]) -> pa.Table:
    index = table.column_names.index(name)
    field = table.schema.field(name)
    return table.set_column(index, field, pa.array(values, field.type))


def _out_of_range(table: pa.Table, rng: Rng) -> pa.Table:
    blocks = [np.array(block, np.uint16) for block in table.column("codes").to_pylist()]
    blocks[0][int(rng.integers(len(blocks[0])))] = 8192
    table = _set(table, "codes", [block.tolist() for block in blocks])
    return _set(table, "codes_crc32", [codes_crc32(block) for block in blocks])


def _wrong_crc(table: pa.Table, rng: Rng) -> pa.Table:
    crcs = table.column("codes_crc32").to_pylist()
    crcs[-1] ^= 1
    return _set(table, "codes_crc32", crcs)


def _other_order(table: pa.Table, rng: Rng) -> pa.Table:
    return table.take(pa.array(range(table.num_rows - 1, -1, -1)))


def _column_dropped(table: pa.Table, rng: Rng) -> pa.Table:
    return table.drop_columns(["fps"])


def _other_dtype(table: pa.Table, rng: Rng) -> pa.Table:
    wide = pa.list_(pa.field("element", pa.uint32(), nullable=False))
    index = table.column_names.index("codes")
    codes = pa.array(table.column("codes").to_pylist(), wide)
    return table.set_column(index, pa.field("codes", wide, nullable=False), codes)


def _chunk_dropped(table: pa.Table, rng: Rng) -> pa.Table:
    return table.slice(0, table.num_rows - 1)


def _side_table_of_another_shard(output: Made, rng: Rng, root: Path) -> None:
    """Listed with the right hash, but it tells of other clips."""
    one, other = _two(rng)
    theirs = output.store.get(entry_of(output.store, other).shards[0].side_table)
    output.store.put(entry_of(output.store, one).shards[0].side_table, theirs)
    edit(
        output.store,
        one,
        lambda entry: replace(
            entry,
            shards=(
                replace(
                    entry.shards[0],
                    side_table_sha256=sha256(theirs),
                    side_table_size_bytes=len(theirs),
                ),
            ),
        ),
    )


def _checkpoint_of_another_manifest(output: Made, rng: Rng, root: Path) -> None:
    """Sealed, and of as many entries, but not of these."""
    other = finished(root / "other", num_shards=3)
    state = ManifestState(CommittedRows(other.record.num_rows))
    for seq in range(3):
        state.apply(entry_of(other.store, seq))
    state.next_seq = 4
    for name in ("json", "parquet"):
        output.store.delete(f"manifest/00000004.checkpoint.{name}")
    assert write_checkpoint(output.store, state)


def _job_of_another_output(output: Made, rng: Rng, root: Path) -> None:
    """The record, with its own checksum right, of an output with another dataset name."""
    other = made(root / "other", dataset=f"other{int(rng.integers(100))}")
    output.store.put("job.json", other.store.get("job.json"))


def _settings_edited(output: Made, rng: Rng, root: Path) -> None:
    settings = {**output.record.settings, "codes_version": 99}
    edited = output.record.model_copy(update={"settings": settings})
    output.store.put("job.json", edited.to_json())


def _fewer_rows_planned(output: Made, rng: Rng, root: Path) -> None:
    edited = output.record.model_copy(update={"num_rows": 29})
    output.store.put("job.json", edited.to_json())


_TIMES = {"shard": 3, "side table": 2, "entry": 2, "job.json": 1, "plan": 1}

FAMILIES: dict[str, tuple[Plant, int]] = {
    **{
        f"{what} with a flipped bit": (_flipped(what), times)
        for what, times in {
            "shard": 8,
            "side table": 5,
            "entry": 6,
            "job.json": 6,
            "plan": 3,
            "checkpoint": 2,
            "checkpoint table": 2,
        }.items()
    },
    **{
        f"{what} cut short": (_truncated(what), times)
        for what, times in {
            "shard": 3,
            "side table": 2,
            "entry": 2,
            "job.json": 1,
            "plan": 1,
        }.items()
    },
    **{
        f"{what} deleted": (_deleted(what), times)
        for what, times in {
            "shard": 3,
            "side table": 2,
            "entry": 2,
            "job.json": 1,
            "plan": 1,
        }.items()
    },
    "checkpoint table deleted": (_deleted("checkpoint table"), 1),
    "last entries deleted": (_last_entries_missing, 2),
    "two shards swapped": (_swapped_shards, 3),
    "two side tables swapped": (_swapped_side_tables, 2),
    "two entries swapped": (_swapped_entries, 2),
    "shard listed twice": (_shard_listed_twice, 2),
    "copy of a shard listed": (_copy_listed, 2),
    "entry renumbered": (_renumbered, 2),
    "clip id changed": (_clip_id_changed, 2),
    "row changed": (_row_changed, 2),
    "row outside the plan": (_row_outside, 1),
    "source changed": (_source_changed, 2),
    "segments renumbered": (_segment_changed, 1),
    "clip moved to another shard": (_clip_moved, 2),
    "rows miscounted": (_counted("num_rows"), 1),
    "codes miscounted": (_counted("num_codes"), 1),
    "frames miscounted": (_counted("num_frames"), 1),
    "grid changed": (_grid_changed, 1),
    "rejection removed": (_rejection_removed, 2),
    "tokenized clip rejected": (_rejection_of_a_tokenized_clip, 1),
    "shard removed from its entry": (_shard_removed_from_entry, 2),
    "shard of another fingerprint": (_foreign_fingerprint, 2),
    "code out of range": (_edited_codes(_out_of_range), 2),
    "wrong CRC": (_edited_codes(_wrong_crc), 1),
    "rows in another order": (_edited_codes(_other_order), 1),
    "column dropped": (_edited_codes(_column_dropped), 1),
    "codes of another type": (_edited_codes(_other_dtype), 1),
    "chunk dropped": (_edited_codes(_chunk_dropped), 1),
    "side table of another shard": (_side_table_of_another_shard, 2),
    "checkpoint of another manifest": (_checkpoint_of_another_manifest, 1),
    "job.json of another output": (_job_of_another_output, 1),
    "settings edited": (_settings_edited, 1),
    "fewer rows planned": (_fewer_rows_planned, 1),
}

DEFECTS = [(name, number) for name, (_, times) in FAMILIES.items() for number in range(times)]
