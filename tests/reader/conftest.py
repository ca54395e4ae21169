"""An output of several shards, in memory and on disk, for tests of what trains from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.formats.formats_helpers import DictStore, encoded_clip
from tests.reader.reader_helpers import begin, commit, put_shard
from tokpipe.config.job import StoreOptions
from tokpipe.reader import CodeCache
from tokpipe.reader.output import Output
from tokpipe.storage import open_store

SHARD_CLIPS = (5, 1, 7, 4, 6)
NUM_CLIPS = sum(SHARD_CLIPS)


def _write(store: Any) -> None:
    begin(store)
    row = 0
    receipts = []
    for shard, number in enumerate(SHARD_CLIPS):
        clips = [encoded_clip(row + i, [5] * (1 + (row + i) % 3)) for i in range(number)]
        receipts.append(put_shard(store, f"s{shard}", clips))
        row += number
    commit(store, 0, *receipts)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> CodeCache:
    store = DictStore()
    _write(store)
    return CodeCache(Output(store), tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output on disk, which the processes of a loader can open."""
    folder = tmp_path_factory.mktemp("output")
    _write(open_store(str(folder / "out"), StoreOptions()))
    return folder
