"""Shards are made once per epoch in a cache that holds two windows, ahead of their use."""

import logging
import time
from itertools import islice
from pathlib import Path

import pytest

from tests.formats.formats_helpers import DictStore, encoded_clip
from tests.reader.reader_helpers import ids, store_with
from tokpipe.errors import ConfigError, CorruptOutput
from tokpipe.reader import ClipStream, CodeCache, Output

NUM_SHARDS = 12
CLIPS = [
    [encoded_clip(row, (17,), (64, 64)) for row in range(5 * shard, 5 * shard + 5)]
    for shard in range(NUM_SHARDS)
]


@pytest.fixture(scope="module")
def objects() -> dict[str, bytes]:
    return store_with(*CLIPS).objects


@pytest.fixture
def store(objects: dict[str, bytes]) -> DictStore:
    store = DictStore()
    store.objects = dict(objects)
    return store


def made(store: DictStore) -> list[str]:
    return [key for key in store.requests if key.startswith("get shards/")]


def size_of_a_shard(store: DictStore, folder: Path) -> int:
    CodeCache(Output(store), folder).shard(0)
    store.requests.clear()
    return next(folder.glob("*.arrow")).stat().st_size


def test_the_window_fits_a_small_cache(
    store: DictStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    size = size_of_a_shard(store, tmp_path / "one")
    output = Output(store)
    with caplog.at_level(logging.WARNING):
        cache = CodeCache(output, tmp_path / "small", max_bytes=6 * size + size // 2)
        stream = ClipStream(cache, window_shards=8)
    assert "window_shards=8 is lowered to 3" in caplog.text
    assert len(ids(stream)) == 5 * NUM_SHARDS
    assert len(made(store)) == NUM_SHARDS, "each was made once"
    same = ClipStream(CodeCache(output, tmp_path / "large"), window_shards=3)
    stream.set_epoch(0)
    assert ids(stream) == ids(same)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        cache = CodeCache(output, tmp_path / "enough", max_bytes=NUM_SHARDS * (size + 2000))
        ClipStream(cache, window_shards=8)
    assert caplog.text == ""


def test_a_cache_of_less_than_two_shards_is_rejected(store: DictStore, tmp_path: Path) -> None:
    size = size_of_a_shard(store, tmp_path / "one")
    cache = CodeCache(Output(store), tmp_path / "small", max_bytes=size + size // 2)
    with pytest.raises(ConfigError, match="does not hold two shards of each output"):
        ClipStream(cache)


def test_the_next_window_is_made_while_this_one_is_read(store: DictStore, tmp_path: Path) -> None:
    stream = ClipStream(CodeCache(Output(store), tmp_path), window_shards=2)
    for _ in islice(stream, 8):
        time.sleep(0.1)
    assert len(made(store)) == 4


def test_an_error_ahead_is_raised_when_the_shard_is_needed(
    store: DictStore, tmp_path: Path
) -> None:
    stream = ClipStream(CodeCache(Output(store), tmp_path), window_shards=1, shuffle=False)
    del store.objects["shards/p-2-a.parquet"]
    reader = iter(stream)
    for _ in range(5):
        next(reader)
        time.sleep(0.02)
    assert "get shards/p-2-a.parquet" in made(store)
    with pytest.raises(CorruptOutput, match=r"p-2-a\.parquet is damaged: it is missing"):
        next(reader)
