"""A hundred and one defects to plant in a clean output, by family, each a function of a seed."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tests.audit.outputs import CUT_ROW, Made, edit, entry_of, finished, made, parquet_edited, put
from tests.formats.formats_helpers import flipped
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
from tokpipe.storage import Store
from tokpipe.types import ClipRef, Receipt

NUM_ENTRIES = 8
Rng = np.random.Generator
Plant = Callable[[Made, Rng, Path], object]


def flip(store: Store, key: str, rng: Rng) -> None:
    data = store.get(key)
    store.put(key, flipped(data, int(rng.integers(8 * len(data)))))


def truncate(store: Store, key: str, rng: Rng) -> None:
    data = store.get(key)
    store.put(key, data[: int(rng.integers(len(data)))])


def _seq(rng: Rng) -> int:
    return int(rng.integers(NUM_ENTRIES))


def _receipt(output: Made, seq: int) -> Receipt:
    return entry_of(output.store, seq).shards[0]


def _some_key(output: Made, rng: Rng, what: str) -> str:
    seq = _seq(rng)
    keys = {
        "shard": _receipt(output, seq).shard,
        "side table": _receipt(output, seq).side_table,
        "entry": entry_key(seq),
        "plan": "plan/driver/00000.parquet",
        "checkpoint": "manifest/00000004.checkpoint.json",
        "checkpoint table": "manifest/00000004.checkpoint.parquet",
        "job.json": "job.json",
    }
    return keys[what]


def _spoiled(what: str, spoil: Callable[[Store, str, Rng], None]) -> Plant:
    return lambda output, rng, root: spoil(output.store, _some_key(output, rng, what), rng)


def _delete(store: Store, key: str, rng: Rng) -> None:
    store.delete(key)


def _swapped(what: str) -> Plant:
    def plant(output: Made, rng: Rng, root: Path) -> None:
        one, other = (
            entry_key(seq) if what == "entry" else getattr(_receipt(output, seq), what)
            for seq in rng.choice(NUM_ENTRIES, 2, replace=False).tolist()
        )
        kept = output.store.get(one)
        output.store.put(one, output.store.get(other))
        output.store.put(other, kept)

    return plant


def _last_entries_missing(output: Made, rng: Rng, root: Path) -> None:
    for seq in range(NUM_ENTRIES - int(rng.integers(1, 4)), NUM_ENTRIES):
        output.store.delete(entry_key(seq))


def _list_again(output: Made, receipt: Receipt) -> None:
    assert append(output.store, ManifestEntry(NUM_ENTRIES, "driver", "later", (receipt,)))


def _shard_listed_twice(output: Made, rng: Rng, root: Path) -> None:
    _list_again(output, _receipt(output, _seq(rng)))


def _copy_listed(output: Made, rng: Rng, root: Path) -> None:
    """List the clips of a shard a second time, under another name."""
    _list_again(output, put(output, "again", _receipt(output, _seq(rng)).clips, seed=1))


def _entry_edited(**changes: Callable[[ManifestEntry], object]) -> Plant:
    def edited(entry: ManifestEntry) -> ManifestEntry:
        values: dict[str, Any] = {name: change(entry) for name, change in changes.items()}
        return replace(entry, **values)

    return lambda output, rng, root: edit(output.store, _seq(rng), edited)


def _edit_receipt(output: Made, seq: int, change: Callable[[Receipt], Receipt]) -> None:
    edit(output.store, seq, lambda entry: replace(entry, shards=(change(entry.shards[0]),)))


def _receipt_edited(change: Callable[[Receipt, Rng], Receipt]) -> Plant:
    return lambda output, rng, root: _edit_receipt(output, _seq(rng), lambda one: change(one, rng))


def _clip_edited(change: Callable[[ClipRef], ClipRef]) -> Plant:
    """Change one tokenized clip of one entry."""

    def edited(receipt: Receipt, rng: Rng) -> Receipt:
        clips = list(receipt.clips)
        at = int(rng.integers(len(clips)))
        clips[at] = change(clips[at])
        return replace(receipt, clips=tuple(clips))

    return _receipt_edited(edited)


def _segments_renumbered(output: Made, rng: Rng, root: Path) -> None:
    clips = tuple(
        replace(clip, segment=(clip.segment + 1) % 3) if clip.row == CUT_ROW else clip
        for clip in _receipt(output, 1).clips
    )
    _edit_receipt(output, 1, partial(replace, clips=clips))


def _clip_moved(output: Made, rng: Rng, root: Path) -> None:
    """List a clip with another shard than the one that holds it."""
    one, other = rng.choice(NUM_ENTRIES, 2, replace=False).tolist()
    moved, *kept = _receipt(output, one).clips
    _edit_receipt(output, one, lambda receipt: replace(receipt, clips=tuple(kept)))
    _edit_receipt(output, other, lambda receipt: replace(receipt, clips=(*receipt.clips, moved)))


def _miscounted(what: str) -> Plant:
    def edited(receipt: Receipt, rng: Rng) -> Receipt:
        count = getattr(receipt, f"num_{what}") + int(rng.integers(1, 100))
        return replace(receipt, **{f"num_{what}": count})

    return _receipt_edited(edited)


def _rejection_removed(output: Made, rng: Rng, root: Path) -> None:
    edit(output.store, int(rng.integers(2)), lambda entry: replace(entry, rejected=()))


def _tokenized_clip_rejected(output: Made, rng: Rng, root: Path) -> None:
    clip = _receipt(output, _seq(rng)).clips[0]
    rejection = replace(entry_of(output.store, 0).rejected[0], ref=clip)
    edit(output.store, 0, lambda entry: replace(entry, rejected=(rejection,)))


def relist(output: Made, seq: int, shard: bytes) -> None:
    """Replace a shard, and list the new one with the right size and hash."""
    output.store.put(_receipt(output, seq).shard, shard)
    _edit_receipt(output, seq, partial(replace, size_bytes=len(shard), sha256=sha256(shard)))


def _foreign_fingerprint(output: Made, rng: Rng, root: Path) -> None:
    """The same clips with the fingerprint of other codes, listed with the right hash."""
    seq = _seq(rng)
    other = made(root / "foreign")
    other.write.metadata = replace(other.write.metadata, fingerprint="0" * 32)
    receipt = put(other, f"foreign{seq}", _receipt(output, seq).clips)
    relist(output, seq, other.store.get(receipt.shard))


def _shard_edited(change: Callable[[pa.Table, Rng], pa.Table]) -> Plant:
    def plant(output: Made, rng: Rng, root: Path) -> None:
        seq = _seq(rng)
        data = output.store.get(_receipt(output, seq).shard)
        relist(output, seq, parquet_edited(data, lambda table: change(table, rng)))

    return plant


def _set(table: pa.Table, name: str, values: list[Any], kind: Any = None) -> pa.Table:
    field = table.schema.field(name)
    field = field if kind is None else field.with_type(kind)
    return table.set_column(table.column_names.index(name), field, pa.array(values, field.type))


def _reversed(table: pa.Table, rng: Rng) -> pa.Table:
    return table.take(list(range(table.num_rows))[::-1])


def _out_of_range(table: pa.Table, rng: Rng) -> pa.Table:
    blocks = [np.array(block, np.uint16) for block in table.column("codes").to_pylist()]
    blocks[0][int(rng.integers(len(blocks[0])))] = 8192
    table = _set(table, "codes", [block.tolist() for block in blocks])
    return _set(table, "codes_crc32", [codes_crc32(block) for block in blocks])


def _wrong_crc(table: pa.Table, rng: Rng) -> pa.Table:
    crcs = table.column("codes_crc32").to_pylist()
    crcs[-1] ^= 1
    return _set(table, "codes_crc32", crcs)


def _other_dtype(table: pa.Table, rng: Rng) -> pa.Table:
    wide = pa.list_(pa.field("element", pa.uint32(), nullable=False))
    return _set(table, "codes", table.column("codes").to_pylist(), wide)


def _side_table_of_another_shard(output: Made, rng: Rng, root: Path) -> None:
    """Listed with the right hash, but it describes other clips."""
    one, other = rng.choice(NUM_ENTRIES, 2, replace=False).tolist()
    theirs = output.store.get(_receipt(output, other).side_table)
    output.store.put(_receipt(output, one).side_table, theirs)
    listed = partial(replace, side_table_sha256=sha256(theirs), side_table_size_bytes=len(theirs))
    _edit_receipt(output, one, listed)


def _checkpoint_of_another_manifest(output: Made, rng: Rng, root: Path) -> None:
    """Sealed, and of the right number of entries, but of other ones."""
    other = finished(root / "other", num_shards=3)
    state = ManifestState(CommittedRows(other.record.num_rows))
    for seq in range(3):
        state.apply(entry_of(other.store, seq))
    state.next_seq = 4
    for name in ("json", "parquet"):
        output.store.delete(f"manifest/00000004.checkpoint.{name}")
    assert write_checkpoint(output.store, state)


def _record_of_another_output(output: Made, rng: Rng, root: Path) -> None:
    """With a correct checksum, but another dataset name."""
    other = made(root / "other", dataset=f"other{int(rng.integers(100))}")
    output.store.put("job.json", other.store.get("job.json"))


def _record_edited(output: Made, **changes: object) -> None:
    output.store.put("job.json", output.record.model_copy(update=changes).to_json())


def _settings_edited(output: Made, rng: Rng, root: Path) -> None:
    _record_edited(output, settings={**output.record.settings, "codes_version": 99})


_CUT_SHORT = {"shard": 3, "side table": 2, "entry": 2, "job.json": 1, "plan": 1}
_FLIPPED = {"shard": 8, "side table": 5, "entry": 6, "job.json": 6, "plan": 3}
_FLIPPED |= {"checkpoint": 2, "checkpoint table": 2}

FAMILIES: dict[str, tuple[Plant, int]] = {
    **{f"{what} with a flipped bit": (_spoiled(what, flip), n) for what, n in _FLIPPED.items()},
    **{f"{what} cut short": (_spoiled(what, truncate), n) for what, n in _CUT_SHORT.items()},
    **{f"{what} deleted": (_spoiled(what, _delete), n) for what, n in _CUT_SHORT.items()},
    "checkpoint table deleted": (_spoiled("checkpoint table", _delete), 1),
    "last entries deleted": (_last_entries_missing, 2),
    "two shards swapped": (_swapped("shard"), 3),
    "two side tables swapped": (_swapped("side_table"), 2),
    "two entries swapped": (_swapped("entry"), 2),
    "shard listed twice": (_shard_listed_twice, 2),
    "copy of a shard listed": (_copy_listed, 2),
    "entry renumbered": (_entry_edited(seq=lambda entry: entry.seq + 1), 2),
    "clip id changed": (_clip_edited(lambda clip: replace(clip, clip_id=clip.clip_id[::-1])), 2),
    "row changed": (_clip_edited(lambda clip: replace(clip, row=(clip.row + 1) % 30)), 2),
    "row outside the plan": (_clip_edited(lambda clip: replace(clip, row=clip.row + 1000)), 1),
    "source changed": (_clip_edited(lambda clip: replace(clip, source_uri="s3://other.mp4")), 2),
    "segments renumbered": (_segments_renumbered, 1),
    "clip moved to another shard": (_clip_moved, 2),
    **{f"{what} miscounted": (_miscounted(what), 1) for what in ("rows", "codes", "frames")},
    "grid changed": (_receipt_edited(lambda one, rng: replace(one, grid=one.grid[::-1])), 1),
    "encoder class changed": (
        _receipt_edited(lambda one, rng: replace(one, encoders={"cpu": len(one.clips)})),
        1,
    ),
    "rejection removed": (_rejection_removed, 2),
    "tokenized clip rejected": (_tokenized_clip_rejected, 1),
    "shard removed from its entry": (_entry_edited(shards=lambda entry: ()), 2),
    "shard of another fingerprint": (_foreign_fingerprint, 2),
    "code out of range": (_shard_edited(_out_of_range), 2),
    "wrong CRC": (_shard_edited(_wrong_crc), 1),
    "rows in another order": (_shard_edited(_reversed), 1),
    "column dropped": (_shard_edited(lambda table, rng: table.drop_columns(["fps"])), 1),
    "codes of another type": (_shard_edited(_other_dtype), 1),
    "chunk dropped": (_shard_edited(lambda table, rng: table.slice(0, table.num_rows - 1)), 1),
    "side table of another shard": (_side_table_of_another_shard, 2),
    "checkpoint of another manifest": (_checkpoint_of_another_manifest, 1),
    "job.json of another output": (_record_of_another_output, 1),
    "settings edited": (_settings_edited, 1),
    "fewer rows planned": (lambda output, rng, root: _record_edited(output, num_rows=29), 1),
}

DEFECTS = [(name, number) for name, (_, times) in FAMILIES.items() for number in range(times)]
assert len(DEFECTS) == 101
