"""The committer alone: fencing, lost answers, checkpoints."""

from __future__ import annotations

import pytest

from tests.formats.formats_helpers import DictStore
from tokpipe.errors import Fenced, RuntimeFault, StorageError
from tokpipe.formats.manifest import iter_entries, load_state
from tokpipe.runtime.commit import Committer
from tokpipe.types import ClipRef, Receipt, Rejected

NUM_ROWS = 100


def receipt(*rows: int, name: str = "a") -> Receipt:
    return Receipt(
        shard=f"shards/{name}.parquet",
        size_bytes=10,
        sha256="0" * 64,
        num_rows=len(rows),
        num_codes=len(rows),
        num_frames=len(rows),
        grid=(4, 4),
        side_table=f"clips/{name}.parquet",
        side_table_sha256="0" * 64,
        side_table_size_bytes=10,
        clips=tuple(ClipRef(f"id{row}", row, 0, 1, f"mem://{row}") for row in rows),
    )


def committer(store: DictStore, writer: str) -> Committer:
    state = load_state(store, NUM_ROWS)
    return Committer(store, state, writer)


def settled(store: DictStore) -> list[int]:
    return [ref.row for entry in iter_entries(store) for ref in entry.refs()]


def test_of_two_drivers_one_commits_and_the_other_is_told() -> None:
    store = DictStore()
    first, second = committer(store, "first"), committer(store, "second")
    first.commit([receipt(1)], [])
    with pytest.raises(Fenced, match="written by another driver"):
        second.commit([receipt(1)], [])
    first.commit([receipt(2)], [])
    assert settled(store) == [1, 2]


def test_a_driver_that_was_replaced_cannot_come_back() -> None:
    store = DictStore()
    zombie = committer(store, "zombie")
    zombie.commit([receipt(1)], [])
    heir = committer(store, "heir")
    heir.commit([receipt(2)], [])
    with pytest.raises(Fenced):
        zombie.commit([receipt(3)], [])
    heir.commit([receipt(3)], [])
    assert settled(store) == [1, 2, 3]


def test_what_is_committed_already_is_left_out() -> None:
    store = DictStore()
    driver = committer(store, "driver")
    rejection = Rejected(ClipRef("id5", 5, 0, 1, "mem://5"), "decode", "empty", "")
    driver.commit([receipt(1, 2)], [rejection])
    driver.commit([receipt(1, 2, name="b")], [rejection])
    assert settled(store) == [1, 2, 5]
    assert driver.state.next_seq == 1


def test_a_shard_that_is_half_known_is_a_fault() -> None:
    driver = committer(DictStore(), "driver")
    driver.commit([receipt(1)], [])
    with pytest.raises(RuntimeFault, match="1 of the 2 clips"):
        driver.commit([receipt(1, 2)], [])


def test_an_entry_whose_answer_was_lost_is_found_by_the_next_driver() -> None:
    class Deaf(DictStore):
        def create(self, key: str, data: bytes) -> bool:
            super().create(key, data)
            raise StorageError("no answer")

    store = Deaf()
    with pytest.raises(StorageError):
        committer(store, "first").commit([receipt(1)], [])
    state = load_state(store, NUM_ROWS)
    assert receipt(1).clips[0] in state.committed
    assert receipt(2).clips[0] not in state.committed


def test_a_resume_reads_a_checkpoint_and_the_entries_after_it() -> None:
    store = DictStore()
    driver = committer(store, "driver")
    for row in range(70):
        driver.commit([receipt(row, name=str(row))], [])
    store.requests.clear()
    state = load_state(store, NUM_ROWS)
    assert state.committed.num_done == 70
    assert sum(request.startswith("get ") for request in store.requests) < 15
