"""Code caches hold the codes of the shards, make each once, and survive crashes."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tokpipe.reader.code_cache
import tokpipe.reader.shard_codes
from tests.formats.formats_helpers import Crash, DictStore, encoded_clip, encoded_clips, flipped
from tests.reader.reader_helpers import store_with
from tokpipe.errors import ConfigError, CorruptOutput, StorageError
from tokpipe.reader import CodeCache as CompleteCache
from tokpipe.reader import Output, ShardCodes
from tokpipe.reader.shard_codes import write_shard_codes
from tokpipe.storage.local_files import TEMPORARY_FOLDER
from tokpipe.types import EncodedClip

CodeCache = partial(CompleteCache, allow_partial=True)
EVEN = [encoded_clip(row, (17, 17), (4, 4)) for row in range(3)]
RAGGED = [encoded_clip(row, frames, (2, 6)) for row, frames in ((10, (17, 5)), (11, (1,)))]


@pytest.fixture
def store() -> DictStore:
    """One shard of six equal chunks, and one of three that differ."""
    return store_with(EVEN, RAGGED)


def assert_same(shard: ShardCodes, clips: list[EncodedClip]) -> None:
    wanted = [block for clip in clips for block in clip.codes]
    assert len(shard) == len(wanted)
    for index, (found, block) in enumerate(zip(shard, wanted, strict=True)):
        assert found.dtype == block.dtype
        np.testing.assert_array_equal(found, block)
        np.testing.assert_array_equal(shard[index], block)


def gets(store: DictStore, name: str) -> int:
    return store.requests.count(f"get shards/{name}.parquet")


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def test_shards_have_the_encoded_codes(store: DictStore, tmp_path: Path) -> None:
    output = Output(store)
    cache = CodeCache(output, tmp_path)
    assert len(cache) == 2
    for _ in range(2):
        even, ragged = cache
        assert_same(even, EVEN)
        assert_same(ragged, RAGGED)
    with pytest.raises(ValueError, match="read-only"):
        ragged[0][:] = 0
    np.testing.assert_array_equal(even[-1], even[5])
    for index in (6, -7):
        with pytest.raises(IndexError):
            even[index]
    for shard, batch in zip(cache, output.iter_batches(), strict=True):
        assert shard.rows.to_pylist() == batch.to_pylist()


@pytest.mark.parametrize("codebook_size", [65_536, 65_537])
@given(data=st.data())
@settings(max_examples=25)
def test_any_clips_survive_the_round_trip(codebook_size: int, data: st.DataObject) -> None:
    clips: list[EncodedClip] = data.draw(encoded_clips(codebook_size))
    store = store_with(clips, codebook_size=codebook_size)
    with TemporaryDirectory() as folder:
        (shard,) = CodeCache(Output(store), folder)
        assert_same(shard, sorted(clips, key=lambda clip: clip.ref.clip_id))


def test_clips_may_extend_over_record_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokpipe.reader.shard_codes, "_JOINED", 2)
    clips = [encoded_clip(row, (17,) * 4, (256, 256)) for row in range(2)]
    output = Output(store_with(clips))
    (shard,) = CodeCache(output, tmp_path)
    assert_same(shard, clips)
    for number, clip in enumerate(clips):
        clip_id, codes = shard.clip(number)
        assert clip_id == clip.ref.clip_id
        np.testing.assert_array_equal(codes, np.concatenate(clip.codes))
    with pa.memory_map(str(tmp_path / f"{output.shards[0].sha256}.arrow")) as file:
        batches = pa.ipc.open_file(file)
        sizes = [batches.get_batch(i).num_rows for i in range(batches.num_record_batches)]
        assert sizes == [6, 2], "of row groups of 3, 3 and 2 rows"
        assert batches.read_all().equals(output.to_table())


def test_processes_and_runs_fetch_a_shard_once(store: DictStore, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: list(CodeCache(Output(store), tmp_path)), range(4)))
    assert (gets(store, "p-1-a"), gets(store, "p-2-a")) == (1, 1)
    del store.objects["shards/p-1-a.parquet"], store.objects["shards/p-2-a.parquet"]
    even, ragged = CodeCache(Output(store), tmp_path)
    assert_same(even, EVEN)
    assert_same(ragged, RAGGED)


def test_damage_never_enters_the_cache(store: DictStore, tmp_path: Path) -> None:
    key = "shards/p-2-a.parquet"
    sound = store.objects[key]
    cache = CodeCache(Output(store), tmp_path)
    for bit in range(0, len(sound) * 8, len(sound) * 8 // 20):
        store.objects[key] = flipped(sound, bit)
        with pytest.raises(CorruptOutput, match=r"p-2-a\.parquet is damaged: its SHA-256"):
            cache.shard(1)
    assert kept(tmp_path) == kept(tmp_path / TEMPORARY_FOLDER) == []
    store.objects[key] = sound
    assert_same(cache.shard(1), RAGGED)


def test_a_killed_writer_leaves_no_readable_file(
    store: DictStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(file: Any, shard: Any) -> None:
        write_shard_codes(file, shard)
        file.truncate(file.tell() // 2)
        raise Crash

    monkeypatch.setattr(tokpipe.reader.code_cache, "write_shard_codes", half)
    with pytest.raises(Crash):
        CodeCache(Output(store), tmp_path).shard(0)
    monkeypatch.undo()
    assert kept(tmp_path) == kept(tmp_path / TEMPORARY_FOLDER) == []
    # Killed processes left these two. Only one is old enough to be removed.
    for name, age_s in (("young", 60), ("old", 2 * 24 * 3600)):
        (tmp_path / TEMPORARY_FOLDER / name).write_bytes(b"half")
        os.utime(tmp_path / TEMPORARY_FOLDER / name, (time.time() - age_s,) * 2)
    assert_same(CodeCache(Output(store), tmp_path).shard(0), EVEN)
    assert kept(tmp_path / TEMPORARY_FOLDER) == ["young"]


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_a_truncated_file_is_made_again(store: DictStore, tmp_path: Path, length: int) -> None:
    CodeCache(Output(store), tmp_path).shard(0)
    (name,) = kept(tmp_path)
    sound = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(sound[:length])
    assert_same(CodeCache(Output(store), tmp_path).shard(0), EVEN)
    assert (tmp_path / name).read_bytes() == sound


def test_the_folder_stays_within_max_bytes_and_keeps_recent_files(tmp_path: Path) -> None:
    clips = [[encoded_clip(row, (17,) * 4, (16, 16))] for row in range(4)]
    store = store_with(*clips)
    output = Output(store)
    names = [f"{shard.sha256}.arrow" for shard in output.shards]
    CodeCache(output, tmp_path).shard(0)
    size = (tmp_path / names[0]).stat().st_size
    cache = CodeCache(output, tmp_path, max_bytes=2 * size + size // 2)
    held = cache.shard(0)
    for number, left in ((1, {0, 1}), (2, {1, 2}), (3, {2, 3}), (2, {2, 3}), (0, {2, 0})):
        time.sleep(0.01)  # file times have a resolution of a few milliseconds
        assert_same(cache.shard(number), clips[number])
        assert set(kept(tmp_path)) == {names[i] for i in left}
    assert_same(held, clips[0])
    # The second read of shard 2 did not fetch it, and made its file the more recent one.
    assert [gets(store, f"p-{i + 1}-a") for i in range(4)] == [2, 1, 1, 1]
    with pytest.raises(ConfigError, match="Raise max_bytes"):
        CodeCache(output, tmp_path, max_bytes=size - 1).shard(1)
    with pytest.raises(ConfigError, match="Raise max_bytes"):  # before anything is fetched
        CodeCache(output, tmp_path / "new", max_bytes=1).shard(0)
    assert gets(store, "p-1-a") == 2


def test_a_disk_error_names_the_folder(store: DictStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot write the code cache"):
        CodeCache(Output(store), tmp_path / "file")


def test_an_empty_output_has_no_shards(tmp_path: Path) -> None:
    cache = CodeCache(Output(store_with()), tmp_path)
    assert (len(cache), list(cache)) == (0, [])
