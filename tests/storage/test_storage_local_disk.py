"""Failures that only occur on local disk."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from tests.storage.listed import sizes
from tokpipe.config.job import StoreOptions
from tokpipe.errors import AccessDenied, ConfigError, StorageError
from tokpipe.storage import Store
from tokpipe.storage.local_files import TEMPORARY_FOLDER, write_file

OPTIONS = StoreOptions(deadline_s=5)


def _write_forever(folder: str) -> None:
    store = Store(folder, OPTIONS)
    for number in range(1_000_000):
        store.put("shards/same", bytes([number % 256]) * 200_000)
        store.create(f"manifest/{number}", bytes([number % 256]) * 200_000)


def test_a_killed_writer_leaves_only_complete_objects(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "out"), OPTIONS)
    context = multiprocessing.get_context("spawn")
    writer = context.Process(target=_write_forever, args=(str(tmp_path / "out"),))
    writer.start()
    while not sizes(store, "manifest/"):
        time.sleep(0.01)
    time.sleep(0.2)
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    found = sizes(store, "")
    assert set(found.values()) == {200_000}
    assert all(len(set(store.get(key))) == 1 for key in found)
    assert not any(TEMPORARY_FOLDER in key for key in found)


def test_temporary_files_are_removed(tmp_path: Path) -> None:
    store = Store(str(tmp_path), OPTIONS)
    store.put("a", b"1")
    assert not store.create("a", b"2")
    temporary = tmp_path / TEMPORARY_FOLDER
    assert list(temporary.iterdir()) == []
    old, new = temporary / "old", temporary / "new"
    old.write_bytes(b"x")
    new.write_bytes(b"x")
    os.utime(old, (0, time.time() - 2 * 86400))
    Store(str(tmp_path), OPTIONS)
    assert list(temporary.iterdir()) == [new]


def test_a_file_is_replaced_atomically_with_the_umasks_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    before = os.umask(0o027)
    try:
        write_file(path, b"one")
        write_file(path, b"two")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda file: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            write_file(path, b"three")
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("report.html", b"two")]


def test_a_file_is_not_a_folder_and_a_folder_is_not_an_object(tmp_path: Path) -> None:
    store = Store(str(tmp_path), OPTIONS)
    store.put("a/b", b"1")
    for write in (store.put, store.create):
        with pytest.raises(StorageError, match="a folder above it is a file"):
            write("a/b/c", b"2")
    with pytest.raises(StorageError):
        store.get("a")
    assert store.size("a") is None


def test_a_relative_prefix_and_a_file_uri_are_the_same_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Store("out", OPTIONS).put("a", b"1")
    store = Store(f"file://{tmp_path}/out", OPTIONS)
    assert store.get("a") == b"1"
    assert store.uri == f"{tmp_path}/out"


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write anywhere")
def test_a_folder_without_permission_is_denied(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(AccessDenied):
        Store(str(tmp_path), OPTIONS).put("a", b"1")


def test_an_invalid_protocol_or_option_is_a_config_error() -> None:
    for protocol in ("htp", "dir", "generic", "zip", "reference"):  # some need options
        with pytest.raises(ConfigError, match=f"{protocol}:// cannot be opened"):
            Store(f"{protocol}://host/out", OPTIONS)
    misspelt = StoreOptions(options={"s3": {"endpont_url": "x"}})
    with pytest.raises(ConfigError, match=r"storage\.options\.s3.*endpont_url"):
        Store("s3://bucket", misspelt)


def test_a_range_far_beyond_the_end_takes_no_memory(tmp_path: Path) -> None:
    """As a forged manifest may claim; Python would take the memory before it reads."""
    (tmp_path / "a").write_bytes(b"abc")
    store = Store(str(tmp_path), StoreOptions(deadline_s=1))
    assert store.get_range("a", 1, 2**40) == b"bc"
    assert store.get_range("a", 2**30, 2**40) == b""
