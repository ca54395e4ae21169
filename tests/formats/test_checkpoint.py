import itertools
import json
import logging
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.formats.formats_helpers import DictStore, clip_ref, encoded_clip, flipped
from tokpipe.formats.checks import sha256
from tokpipe.formats.manifest import (
    CHECKPOINT_INTERVAL,
    ManifestEntry,
    ManifestState,
    append,
    checkpoint_spacing,
    load_state,
    write_checkpoint,
)
from tokpipe.formats.sealed_json import dump_lines, seal
from tokpipe.formats.shard import receipt_of
from tokpipe.telemetry.account import Account
from tokpipe.types import Rejected

JSON, PARQUET = "manifest/00000004.checkpoint.json", "manifest/00000004.checkpoint.parquet"
NUM_ROWS = 1000


def filled(num_entries: int, store: DictStore | None = None) -> DictStore:
    """A manifest whose entries each list a shard of one clip, and reject a segment and a row."""
    store = store or DictStore()
    for seq in range(num_entries):
        clips = [encoded_clip(10 * seq)]
        receipt = receipt_of(f"p-{seq}-a", clips, b"shard", b"side")
        part = Rejected(clip_ref(10 * seq + 1, 1, 3), "decode", "hang", "message")
        whole = Rejected(clip_ref(10 * seq + 2), "decode", "no_video", "message")
        account = Account(slow_s={"no compiler": 1 / 3})
        entry = ManifestEntry(seq, "driver-1", "now", (receipt,), (part, whole), account=account)
        append(store, entry)
    return store


def same(one: ManifestState, other: ManifestState) -> bool:
    return (
        one.next_seq == other.next_seq
        and one.totals == other.totals
        and one.committed.bitmap == other.committed.bitmap
        and dict(one.committed.partial) == dict(other.committed.partial)
        and one.shards.equals(other.shards)
    )


@pytest.fixture
def truth() -> ManifestState:
    """The state after six entries, from reading all of them."""
    return load_state(filled(6), NUM_ROWS)


@pytest.fixture
def store() -> DictStore:
    """Six entries, and the checkpoint after the first four."""
    store = filled(4)
    assert write_checkpoint(store, load_state(store, NUM_ROWS))
    return filled(6, store)


def load(store: DictStore) -> ManifestState:
    return load_state(store, NUM_ROWS, interval=4)


def test_a_checkpoint_equals_the_entries_before_it(store: DictStore, truth: ManifestState) -> None:
    store.objects |= {f"manifest/{seq:08d}.json": b"never read" for seq in range(4)}
    assert same(load(store), truth)


def test_totals_count_listed_shards(truth: ManifestState) -> None:
    totals = truth.totals
    assert (totals.num_shards, totals.num_clips, totals.num_rejected) == (6, 6, 12)
    assert totals.rejected == {"hang": 6, "no_video": 6}
    assert (totals.num_rows, totals.num_frames) == (18, 6 * 39)
    assert totals.num_codes == 6 * (5 + 5 + 2) * 6
    assert totals.size_bytes == 6 * len(b"shard" + b"side")


def test_other_tools_can_read_the_table_of_shards(store: DictStore) -> None:
    table = pq.read_table(pa.BufferReader(store.objects[PARQUET]))
    assert table.num_rows == 4
    assert table.column("seq").to_pylist() == [0, 1, 2, 3]
    assert table.slice(2, 1).to_pylist()[0] == {
        "seq": 2, "shard": "shards/p-2-a.parquet", "size_bytes": 5, "sha256": sha256(b"shard"),
        "num_rows": 3, "num_codes": 72, "num_frames": 39, "num_clips": 1, "h": 2, "w": 3,
        "side_table": "clips/p-2-a.parquet", "side_table_sha256": sha256(b"side"),
        "side_table_size_bytes": 4,
    }  # fmt: skip


@pytest.mark.parametrize("key", [JSON, PARQUET])
def test_a_damaged_or_missing_half_costs_only_time(
    store: DictStore, truth: ManifestState, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    sound = store.objects[key]
    for bit in range(3, len(sound) * 8, len(sound) // 8):
        store.objects[key] = flipped(sound, bit)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert same(load(store), truth)
        assert "skipping a damaged checkpoint" in caplog.text
    store.objects[key] = b""
    assert same(load(store), truth)
    del store.objects[key]
    assert same(load(store), truth)


def test_loading_falls_back_to_an_older_checkpoint(truth: ManifestState) -> None:
    store = filled(2)
    write_checkpoint(store, load_state(store, NUM_ROWS))
    filled(4, store)
    write_checkpoint(store, load_state(store, NUM_ROWS))
    filled(6, store)
    store.objects[JSON] = b"{}"
    store.requests.clear()
    assert same(load_state(store, NUM_ROWS, interval=2), truth)
    assert "get manifest/00000001.json" not in store.requests


def test_checkpoints_of_a_long_manifest_thin_out() -> None:
    places = [seq for seq in range(1, 300_000) if seq % checkpoint_spacing(seq) == 0]
    gaps = [(after - before, after) for before, after in itertools.pairwise(places)]
    assert all(gap <= max(CHECKPOINT_INTERVAL, after / 32) for gap, after in gaps)
    assert sum(places) < 50 * places[-1], "each is as large as what it sums up"


@pytest.mark.parametrize("newest", [62, 63, 64, 66])
def test_the_newest_checkpoint_is_found_wherever_the_spacing_changes(newest: int) -> None:
    store = filled(newest)
    write_checkpoint(store, load_state(store, NUM_ROWS))
    truth = load_state(filled(67, store), NUM_ROWS)
    store.requests.clear()
    assert same(load_state(store, NUM_ROWS, interval=1), truth)
    assert f"get manifest/{newest:08}.json" in store.requests
    assert f"get manifest/{newest - 2:08}.json" not in store.requests


def test_a_checkpoint_of_another_plan_is_ignored(store: DictStore) -> None:
    state = load_state(store, NUM_ROWS + 8, interval=4)
    assert (state.committed.num_rows, state.next_seq) == (NUM_ROWS + 8, 6)


@pytest.mark.parametrize("change", [{"format": 2, "totals": "elsewhere"}, {"totals": {}}], ids=str)
def test_a_checkpoint_of_another_format_is_ignored(
    store: DictStore, truth: ManifestState, change: dict[str, Any]
) -> None:
    body = json.loads(store.objects[JSON])
    del body["checksum"]
    store.objects[JSON] = dump_lines(seal({**body, **change}))
    assert same(load(store), truth)


def test_a_damaged_table_gets_no_checkpoint_record(truth: ManifestState) -> None:
    store = filled(4)
    store.objects[PARQUET] = b"half of one"
    assert not write_checkpoint(store, load_state(store, NUM_ROWS))
    assert JSON not in store.objects
    other = filled(3)
    store = filled(4)
    write_checkpoint(other, load_state(other, NUM_ROWS))
    store.objects[PARQUET] = other.objects["manifest/00000003.checkpoint.parquet"]
    assert not write_checkpoint(store, load_state(store, NUM_ROWS))
    assert same(load(filled(6, store)), truth)


def test_any_driver_writes_the_same_checkpoint_however_it_loaded_the_state() -> None:
    resumed = filled(4)
    write_checkpoint(resumed, load_state(resumed, NUM_ROWS))
    filled(8, resumed)
    write_checkpoint(resumed, load(resumed))
    fresh = filled(8)
    write_checkpoint(fresh, load_state(fresh, NUM_ROWS))
    before = dict(resumed.objects)
    assert fresh.objects.items() <= before.items()
    assert write_checkpoint(resumed, load_state(fresh, NUM_ROWS)), "equal bytes are no conflict"
    assert resumed.objects == before
