"""One suite for every kind of store: what the Store protocol promises."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.storage.listed import sizes
from tokpipe.config.job import StoreOptions
from tokpipe.errors import NotFound
from tokpipe.storage import Store, open_store, probe_store

OPTIONS = StoreOptions(deadline_s=20)


@pytest.fixture(params=["memory", "disk", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "memory":
        uri = f"memory://{uuid.uuid4().hex}/out"
    elif request.param == "disk":
        uri = str(tmp_path / "out")
    else:
        uri = f"{request.getfixturevalue('s3_bucket').uri}/some/out"
    return open_store(uri, OPTIONS)


def test_what_was_put_is_got_and_put_replaces_it(store: Store) -> None:
    store.put("shards/a.parquet", b"old")
    store.put("shards/a.parquet", b"newer")
    assert store.get("shards/a.parquet") == b"newer"
    assert store.size("shards/a.parquet") == 5


def test_an_empty_object_is_an_object(store: Store) -> None:
    store.put("empty", b"")
    assert (store.get("empty"), store.size("empty")) == (b"", 0)
    assert store.get_range("empty", 0, 10) == b""


def test_a_missing_object_is_not_found_and_has_no_size(store: Store) -> None:
    store.put("folder/a", b"1")
    for key in ("b", "folder", "folder/b", "folder/a/b/c"):
        assert store.size(key) is None
    with pytest.raises(NotFound, match=r"out/b: does not exist"):
        store.get("b")
    with pytest.raises(NotFound):
        store.get_range("b", 0, 1)


@pytest.mark.parametrize(
    ("start", "end", "found"),
    [(0, 3, b"012"), (3, 5, b"34"), (8, 99, b"89"), (10, 12, b""), (99, 100, b""), (4, 4, b"")],
)
def test_a_range_is_clipped_to_the_object(store: Store, start: int, end: int, found: bytes) -> None:
    store.put("digits", b"0123456789")
    assert store.get_range("digits", start, end) == found


def test_the_second_create_of_a_key_is_refused_and_leaves_it_alone(store: Store) -> None:
    assert store.create("manifest/0", b"attempt 1")
    assert not store.create("manifest/0", b"attempt 2")
    assert store.get("manifest/0") == b"attempt 1"


def test_a_refused_create_of_equal_bytes_was_our_own(store: Store) -> None:
    assert store.create("manifest/0", b"attempt 1")
    assert store.create("manifest/0", b"attempt 1")


def test_a_deleted_key_can_be_created_again_and_deleting_nothing_is_no_error(store: Store) -> None:
    store.delete("a")
    assert store.create("a", b"1")
    store.delete("a")
    assert store.create("a", b"2")
    assert store.get("a") == b"2"


def test_large_objects_are_put_and_created_whole(store: Store) -> None:
    data = bytes(range(256)) * 2**16 + b"tail"  # above the size that is sent in parts
    store.put("put", data)
    assert store.get("put") == data
    assert store.create("created", data)
    assert not store.create("created", data[::-1])
    assert store.size("created") == len(data)


def test_listing_gives_keys_below_a_prefix_with_sizes(store: Store) -> None:
    for key in ("a/1", "a/12", "a/b/3", "ab", "c"):
        store.put(key, key.encode())
    assert sizes(store, "") == {"a/1": 3, "a/12": 4, "a/b/3": 5, "ab": 2, "c": 1}
    assert sizes(store, "a/") == {"a/1": 3, "a/12": 4, "a/b/3": 5}
    assert sizes(store, "a/1") == {"a/1": 3, "a/12": 4}
    assert sizes(store, "a") == {"a/1": 3, "a/12": 4, "a/b/3": 5, "ab": 2}
    assert sizes(store, "nothing/here") == {}


def test_a_listing_tells_when_each_object_was_last_written(store: Store) -> None:
    store.put("a", b"1")
    (found,) = store.list("a")
    assert abs(found.modified_s - time.time()) < 60
    time.sleep(1.1)  # S3 counts whole seconds
    store.put("a", b"2")
    (again,) = store.list("a")
    assert again.modified_s > found.modified_s


def test_what_another_store_object_writes_is_seen_at_once(store: Store) -> None:
    other: Store = pickle.loads(pickle.dumps(store))
    assert sizes(store, "") == {}
    assert store.size("a") is None
    other.put("a", b"123")
    assert (store.size("a"), sizes(store, "")) == (3, {"a": 3})
    other.put("a", b"12345")
    assert (store.size("a"), sizes(store, "")) == (5, {"a": 5})
    other.delete("a")
    assert (store.size("a"), sizes(store, "")) == (None, {})


@pytest.mark.parametrize("key", ["with space", "plus+and%25", "ünïcode/ключ", "q?x=1", "a#b", "~x"])
def test_keys_may_hold_odd_characters(store: Store, key: str) -> None:
    assert store.create(key, b"1")
    assert store.get(key) == b"1"
    assert sizes(store, "") == {key: 1}


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/./b", ".tokpipe-tmp/x"])
def test_a_key_that_could_leave_the_prefix_is_a_bug(store: Store, key: str) -> None:
    with pytest.raises(ValueError, match="is not a key"):
        store.put(key, b"1")


def test_full_uris_are_below_the_prefix(store: Store) -> None:
    assert not store.uri.endswith("/")
    assert store.uri_of("shards/a") == f"{store.uri}/shards/a"
    assert open_store(store.uri + "/", OPTIONS).uri == store.uri


def test_of_many_threads_that_create_one_key_one_wins(store: Store) -> None:
    for round_number in range(2):
        won: list[int] = []
        together = threading.Barrier(6)

        def write(writer: int, key: str = f"manifest/{round_number}", won: list[int] = won) -> None:
            together.wait()  # noqa: B023
            if store.create(key, f"attempt {writer}".encode()):
                won.append(writer)

        threads = [threading.Thread(target=write, args=(writer,)) for writer in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert store.get(f"manifest/{round_number}") == f"attempt {won[0]}".encode()


def _create(store: Store, writer: int, together: Any, won: Any) -> None:
    together.wait()
    if store.create("manifest/0", f"attempt {writer}".encode()):
        won.put(writer)


def test_of_several_processes_that_create_one_key_one_wins(store: Store) -> None:
    if store.uri.startswith("memory"):
        processes: Callable[..., Any] = threading.Thread  # memory belongs to one process
        together: Any = threading.Barrier(3)
    else:
        processes = multiprocessing.get_context("spawn").Process
        together = multiprocessing.get_context("spawn").Barrier(3)
    won = multiprocessing.get_context("spawn").SimpleQueue()
    writers = [processes(target=_create, args=(store, i, together, won)) for i in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    winner = won.get()
    assert won.empty()
    assert store.get("manifest/0") == f"attempt {winner}".encode()


def test_every_store_here_passes_the_probe_which_leaves_nothing(store: Store) -> None:
    probe_store(store)
    assert sizes(store, "") == {}
