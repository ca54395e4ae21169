"""What a store promises, in every kind of store."""

import multiprocessing
import pickle
import threading
import time
from typing import Any

import pytest

from tests.storage.listed import sizes
from tokpipe.config.job import StoreOptions
from tokpipe.errors import NotFound
from tokpipe.storage import Store, probe_store

OPTIONS = StoreOptions(deadline_s=20)


@pytest.fixture
def store(root: str) -> Store:
    return Store(root, OPTIONS)


def test_put_replaces_an_object_and_may_empty_it(store: Store) -> None:
    for data in (b"old", b"newer", b""):
        store.put("shards/a.parquet", data)
        assert store.get("shards/a.parquet") == data
        assert store.size("shards/a.parquet") == len(data)
    assert store.get_range("shards/a.parquet", 0, 10) == b""


def test_a_missing_object_is_not_found_and_has_no_size(store: Store) -> None:
    store.put("folder/a", b"1")
    for key in ("b", "folder", "folder/b", "folder/a/b/c"):
        assert store.size(key) is None
    with pytest.raises(NotFound, match=r"out/b: does not exist"):
        store.get("b")
    with pytest.raises(NotFound):
        store.get_range("b", 0, 1)


def test_a_range_is_clipped_to_the_object(store: Store) -> None:
    store.put("digits", b"0123456789")
    for start, end in ((0, 3), (3, 5), (8, 99), (10, 12), (99, 100), (4, 4)):
        assert store.get_range("digits", start, end) == b"0123456789"[start:end]


def test_a_key_is_created_once_until_it_is_deleted(store: Store) -> None:
    store.delete("manifest/0")  # not an error
    assert store.create("manifest/0", b"attempt 1")
    assert not store.create("manifest/0", b"attempt 2")
    assert store.get("manifest/0") == b"attempt 1"
    assert store.create("manifest/0", b"attempt 1"), "equal bytes count as ours"
    store.delete("manifest/0")
    assert store.create("manifest/0", b"attempt 2")
    assert store.get("manifest/0") == b"attempt 2"


def test_large_objects_are_written_whole(store: Store) -> None:
    data = bytes(range(256)) * 2**16 + b"tail"  # large enough for a multipart upload
    store.put("put", data)
    assert store.get("put") == data
    assert store.create("created", data)
    assert not store.create("created", data[::-1])
    assert store.size("created") == len(data)


def test_a_listing_has_the_keys_and_sizes_below_a_prefix(store: Store) -> None:
    keys = ("a/1", "a/12", "a/b/3", "ab", "c")
    for key in keys:
        store.put(key, key.encode())
    for prefix in ("", "a/", "a/1", "a", "nothing/here"):
        found = {key: len(key) for key in keys if key.startswith(prefix)}
        assert sizes(store, prefix) == found


def test_a_listing_has_the_time_of_the_last_write(store: Store) -> None:
    store.put("a", b"1")
    (found,) = store.list("a")
    assert abs(found.modified_s - time.time()) < 60
    time.sleep(1.1)  # S3 counts whole seconds
    store.put("a", b"2")
    (again,) = store.list("a")
    assert again.modified_s > found.modified_s


def test_writes_of_another_client_are_visible_at_once(store: Store) -> None:
    other: Store = pickle.loads(pickle.dumps(store))
    assert sizes(store, "") == {}
    assert store.size("a") is None
    other.put("a", b"123")
    assert (store.size("a"), sizes(store, "")) == (3, {"a": 3})
    other.put("a", b"12345")
    assert (store.size("a"), sizes(store, "")) == (5, {"a": 5})
    other.delete("a")
    assert (store.size("a"), sizes(store, "")) == (None, {})


def test_keys_may_contain_special_characters(store: Store) -> None:
    keys = ("with space", "plus+and%25", "ünïcode/ключ", "q?x=1", "a#b", "~x")
    for key in keys:
        assert store.create(key, key.encode())
    assert [store.get(key).decode() for key in keys] == [*keys]
    assert sizes(store, "") == {key: len(key.encode()) for key in keys}


def test_a_key_that_could_leave_the_prefix_is_a_bug(store: Store) -> None:
    for key in ("", "/a", "a/", "a//b", "../a", "a/./b", ".tokpipe-tmp/x"):
        with pytest.raises(ValueError, match="is not a key"):
            store.put(key, b"1")


def test_full_uris_are_below_the_prefix(store: Store) -> None:
    assert not store.uri.endswith("/")
    assert store.uri_of("shards/a") == f"{store.uri}/shards/a"
    assert Store(store.uri + "/", OPTIONS).uri == store.uri


def _create(store: Store, key: str, writer: int, together: Any, won: Any) -> None:
    together.wait()
    if store.create(key, f"attempt {writer}".encode()):
        won.put(writer)


def test_only_one_of_concurrent_creates_wins(store: Store) -> None:
    spawn = multiprocessing.get_context("spawn")
    kinds: list[Any] = [(threading.Thread, threading.Barrier)] * 2
    if not store.uri.startswith("memory"):  # which belongs to one process
        kinds.append((spawn.Process, spawn.Barrier))
    for number, (worker, barrier) in enumerate(kinds):
        key, together, won = f"manifest/{number}", barrier(4), spawn.SimpleQueue()
        writers = [worker(target=_create, args=(store, key, i, together, won)) for i in range(4)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        winner = won.get()
        assert won.empty()
        assert store.get(key) == f"attempt {winner}".encode()


def test_the_probe_passes_and_leaves_nothing_behind(store: Store) -> None:
    probe_store(store)
    assert sizes(store, "") == {}
