import math
from itertools import islice

import pytest

from tests.formats.formats_helpers import DictStore, clip_ref
from tokpipe.errors import CorruptOutput
from tokpipe.formats.manifest import (
    ManifestEntry,
    append,
    count_entries,
    iter_entries,
    iter_rejected,
    load_state,
    write_checkpoint,
)
from tokpipe.types import ClipRef, Rejected


def rejecting(seq: int, *refs: ClipRef, writer: str = "driver-1") -> ManifestEntry:
    rejected = tuple(Rejected(ref, "decode", "r", "message") for ref in refs)
    return ManifestEntry(seq, writer, "2026-01-01T00:00:00+00:00", (), rejected)


def store_of(num_entries: int) -> DictStore:
    store = DictStore()
    for seq in range(num_entries):
        assert append(store, rejecting(seq, clip_ref(seq)))
    store.requests.clear()
    return store


def test_two_drivers_cannot_write_the_same_entry() -> None:
    store = DictStore()
    first, second = rejecting(0, writer="driver-1"), rejecting(0, writer="driver-2")
    assert append(store, first)
    assert not append(store, second)
    assert append(store, first), "the echo of an own append is ours"
    assert list(iter_entries(store)) == [first]


@pytest.mark.parametrize(
    ("num_entries", "known"),
    [*((num, 0) for num in (*range(70), 1000)), *((1000, known) for known in (1, 63, 999, 1000))],
)
def test_the_end_is_found_in_logarithmically_many_requests(num_entries: int, known: int) -> None:
    store = DictStore()
    for seq in range(num_entries):
        store.objects[f"manifest/{seq:08d}.json"] = b"{}"
    for num_listed in (num_entries, num_entries // 2, 0):  # a listing may lag behind
        store.unlisted = set(list(store.objects)[num_listed:])
        store.requests.clear()
        assert count_entries(store, known) == num_entries
        unknown = num_entries - (known or num_listed)
        assert len(store.requests) - (not known) <= 2 * math.log2(unknown + 1) + 2


def test_any_range_of_entries_comes_in_order() -> None:
    store = store_of(50)
    assert [entry.seq for entry in iter_entries(store)] == list(range(50))
    assert [entry.seq for entry in iter_entries(store, 40)] == list(range(40, 50))
    assert [entry.seq for entry in iter_entries(store, 3, 5)] == [3, 4]
    assert [rejected.ref.row for rejected in iter_rejected(store, to_seq=4)] == [3, 2, 1, 0]
    store = store_of(200)
    assert len(list(islice(iter_entries(store, to_seq=200), 3))) == 3
    assert len(store.requests) < 40, "reading a few entries does not read them all"


def test_an_entry_that_is_missing_or_under_the_wrong_number_is_rejected() -> None:
    store = store_of(20)
    whole = store.objects.pop("manifest/00000011.json")
    with pytest.raises(CorruptOutput, match=r"00000011\.json is damaged: it is missing"):
        list(iter_entries(store, to_seq=20))
    store.objects["manifest/00000011.json"] = whole
    store.objects["manifest/00000001.json"] = store.objects["manifest/00000002.json"]
    with pytest.raises(CorruptOutput, match=r"00000001\.json is damaged: it holds entry 2"):
        load_state(store, 10)


def test_a_clip_settled_twice_is_rejected() -> None:
    store = DictStore()
    append(store, rejecting(0, clip_ref(5)))
    append(store, rejecting(1, clip_ref(4), clip_ref(5)))
    with pytest.raises(CorruptOutput, match=r"entry 1 settles clip .* would hold it twice"):
        load_state(store, 10)


def test_entries_apply_only_in_order() -> None:
    state = load_state(DictStore(), 10)
    with pytest.raises(CorruptOutput, match="found manifest entry 1 in place of entry 0"):
        state.apply(rejecting(1))


def test_a_manifest_beyond_the_plan_is_rejected() -> None:
    with pytest.raises(CorruptOutput, match="in a plan of 19 rows"):
        load_state(store_of(20), 19)


def test_loading_reads_only_a_checkpoint_and_the_entries_after_it() -> None:
    store = store_of(1000)
    write_checkpoint(store, load_state(store_of(960), 2000))
    store.requests.clear()
    state = load_state(store, 2000)
    assert state.next_seq == 1000
    assert state.totals.rejected == {"r": 1000}
    assert state.committed.num_done == 1000
    gets = [request for request in store.requests if request.startswith("get")]
    assert len(gets) == 2 + 40
    assert len(store.requests) < 42 + 25
