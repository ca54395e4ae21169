"""The committer: fencing, lost answers, checkpoints."""

import os

import pytest

from tests.formats.formats_helpers import DictStore, claimed
from tests.runtime.simulated_world import item_of, receipt_of, ref_of
from tokpipe.errors import CorruptOutput, Fenced, RuntimeFault, StorageError
from tokpipe.formats.manifest import iter_entries, iter_rejected, load_state
from tokpipe.runtime.commit import Committer
from tokpipe.telemetry.account import Account
from tokpipe.types import Receipt, Rejected

NUM_ROWS = 100


def receipt(*rows: int, name: str = "a") -> Receipt:
    return receipt_of(tuple(ref_of(item_of(row)) for row in rows), name)


def rejection(row: int, reason: str = "empty") -> Rejected:
    return Rejected(ref_of(item_of(row)), "decode", reason, "")


def committer(store: DictStore, writer: str) -> Committer:
    return Committer(store, load_state(store, NUM_ROWS), writer)


def settled(store: DictStore) -> list[int]:
    return [ref.row for entry in iter_entries(store) for ref in entry.refs()]


def test_a_driver_that_was_replaced_cannot_commit_again() -> None:
    store = DictStore()
    first, second = committer(store, "first"), committer(store, "second")
    first.commit([receipt(1)], [])
    with pytest.raises(Fenced, match="written by another driver"):
        second.commit([receipt(1)], [])
    heir = committer(store, "heir")
    heir.commit([receipt(2)], [])
    with pytest.raises(Fenced):
        first.commit([receipt(3)], [])
    heir.commit([receipt(3)], [])
    assert settled(store) == [1, 2, 3]


@pytest.mark.parametrize(
    ("receipts", "rejected"),
    [
        ([receipt(1, 2, name="b")], []),
        ([receipt(2, 3)], []),
        ([receipt(3)], [rejection(5)]),
        ([receipt(3), receipt(3, name="b")], []),
        ([receipt(3)], [rejection(3)]),
    ],
)
def test_a_commit_that_settles_a_clip_again_is_a_fault(
    receipts: list[Receipt], rejected: list[Rejected]
) -> None:
    store = DictStore()
    driver = committer(store, "driver")
    driver.commit([receipt(1, 2)], [rejection(5)])
    with pytest.raises(RuntimeFault, match="again, which leasing rules out"):
        driver.commit(receipts, rejected)
    assert settled(store) == [1, 2, 5]
    assert driver.state.next_seq == 1


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


def test_a_claim_fences_every_older_driver_at_once() -> None:
    store = DictStore()
    old = claimed(store, NUM_ROWS, "old")
    old.commit([receipt(1)], [])
    old.watch()
    new = claimed(store, NUM_ROWS, "new")
    with pytest.raises(Fenced, match=rf"another driver, new \(process {os.getpid()} on "):
        old.watch()
    with pytest.raises(Fenced, match="written by another driver"):
        old.commit([receipt(2)], [])
    new.commit([receipt(2)], [])
    assert settled(store) == [1, 2]


def test_of_two_drivers_that_claim_at_once_one_is_fenced() -> None:
    class Beaten(DictStore):
        """Another driver is quicker, once."""

        quicker = 1

        def create(self, key: str, data: bytes) -> bool:
            if self.quicker and key.startswith("manifest/"):
                self.quicker = 0
                claimed(self, NUM_ROWS, "quick")
            return super().create(key, data)

    store = Beaten()
    with pytest.raises(Fenced, match="quick"):
        claimed(store, NUM_ROWS, "slow")
    assert [entry.writer for entry in iter_entries(store)] == ["quick"]


def test_a_claim_includes_what_an_older_driver_commits_meanwhile() -> None:
    class Busy(DictStore):
        older: Committer | None = None

        def create(self, key: str, data: bytes) -> bool:
            older, self.older = self.older, None
            if older is not None:
                older.commit([receipt(3)], [])
            return super().create(key, data)

    store = Busy()
    store.older = claimed(store, NUM_ROWS, "older")
    newer = claimed(store, NUM_ROWS, "newer")
    assert receipt(3).clips[0] in newer.state.committed
    newer.commit([receipt(4)], [])
    assert settled(store) == [3, 4]


def test_a_claim_brings_a_state_up_to_date_without_loading_it_again() -> None:
    store = DictStore()
    older = claimed(store, NUM_ROWS, "older")
    for row in range(20):
        older.commit([receipt(row, name=f"{row}")], [])
    known = load_state(store, NUM_ROWS)
    older.commit([receipt(20, name="20")], [rejection(21)])
    older.reopen([rejection(21)])
    store.requests.clear()
    Committer(store, known, "newer").claim()
    assert known.committed.bitmap == load_state(store, NUM_ROWS).committed.bitmap
    assert known.committed.done(0, 22).tolist() == [True] * 21 + [False]
    gets = [one for one in store.requests if one.startswith("get ")]
    assert set(gets[:2]) == {f"get manifest/{seq:08d}.json" for seq in (21, 22)}
    with pytest.raises(Fenced):
        older.watch()


def test_withdrawn_rejections_are_work_again_and_settled_once() -> None:
    store = DictStore()
    driver = claimed(store, NUM_ROWS, "driver")
    driver.commit([receipt(1)], [rejection(5), rejection(6, "truncated")])
    driver.reopen([rejection(6, "truncated")])
    assert driver.state.totals.rejected == {"empty": 1}
    driver.commit([receipt(6)], [])
    again = load_state(store, NUM_ROWS)
    assert (again.totals.num_clips, again.totals.num_rejected) == (2, 1)
    assert [one.ref.row for one in iter_rejected(store)] == [5]
    with pytest.raises(CorruptOutput, match="which is not rejected"):
        driver.reopen([rejection(6, "truncated")])


def test_seconds_add_up_over_commits_and_drivers() -> None:
    store = DictStore()
    first = claimed(store, NUM_ROWS, "first")
    first.commit([receipt(1)], [], Account(paid_s=10.0, useful_s=6.0))
    both = {"decode": 0.5, "encode": 4.0}
    first.commit([receipt(2)], [], Account(both, paid_s=5.0, useful_s=2.0, lost_s=1.0))
    second = claimed(store, NUM_ROWS, "second")
    second.commit([receipt(3)], [], Account(paid_s=5.0, useful_s=2.0))
    accounts = [entry.account for entry in iter_entries(store) if entry.shards]
    assert accounts[1] == Account(both, paid_s=5.0, useful_s=2.0, lost_s=1.0)
    totals = load_state(store, NUM_ROWS).totals
    assert (totals.paid_s, totals.useful_s, totals.lost_s) == (20.0, 10.0, 1.0)
    assert totals.goodput == 0.5
