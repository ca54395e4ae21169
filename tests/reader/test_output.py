import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.formats.formats_helpers import DictStore, clip_ref, encoded_clip, encoded_clips, flipped
from tests.reader.reader_helpers import begin, commit, put_shard, store_with, write_clips
from tokpipe.config.job import StoreOptions
from tokpipe.errors import CorruptOutput, NotFound
from tokpipe.formats.shard import shard_schema
from tokpipe.reader import Clip, Output, open_output
from tokpipe.storage import Store
from tokpipe.types import EncodedClip, Rejected

CLIPS = [encoded_clip(row, frames, (4, 4)) for row, frames in enumerate([(17, 17, 5), (1,), (9,)])]
OTHERS = [encoded_clip(row, (17, 2), (2, 6)) for row in (10, 11)]
REJECTED = Rejected(clip_ref(20), "decode", "truncated", "frame 7 of 9 is missing", "pyav")


@pytest.fixture
def store() -> DictStore:
    """Two shards of different grids in their own entries, and a rejected clip in a third."""
    store = store_with(CLIPS, OTHERS)
    commit(store, 2, rejected=[REJECTED])
    return store


def assert_same(clip: Clip, encoded: EncodedClip) -> None:
    assert clip.clip_id == encoded.ref.clip_id
    assert clip.source_uri == encoded.ref.source_uri
    assert clip.fps == encoded.fps
    assert clip.metadata == {"caption": f"caption {encoded.ref.row}"}
    for chunk, span, codes in zip(clip.chunks, encoded.chunks, encoded.codes, strict=True):
        assert chunk.codes.dtype == codes.dtype
        np.testing.assert_array_equal(chunk.codes, codes)
        assert chunk.first_is_image == span.first_is_image
        assert (chunk.frame_start, chunk.n_frames) == (span.first_frame, span.num_frames)
        assert chunk.n_pad_frames == span.num_pad_frames
        assert chunk.n_context_frames == span.num_context_frames
        assert chunk.start_pts_s == encoded.pts_s[span.first_frame]
        assert chunk.end_pts_s == encoded.pts_s[span.first_frame + span.num_frames - 1]
    np.testing.assert_array_equal(clip.codes, np.concatenate(encoded.codes))


def test_clips_have_the_encoded_codes(store: DictStore) -> None:
    output = Output(store)
    for clip, encoded in zip(output.clips(), [*CLIPS, *OTHERS], strict=True):
        assert_same(clip, encoded)
        assert clip.chunks[0].codes.base is None, "a view would keep two megabytes in memory"
        assert clip.chunks[0].codes.flags.writeable
    for encoded in [*OTHERS, *CLIPS, *OTHERS]:
        assert_same(output.clip(encoded.ref.clip_id), encoded)


@pytest.mark.parametrize("codebook_size", [65_536, 65_537])
@given(data=st.data())
@settings(max_examples=40)
def test_any_clips_survive_the_round_trip(codebook_size: int, data: st.DataObject) -> None:
    clips: list[EncodedClip] = data.draw(encoded_clips(codebook_size))
    output = Output(store_with(clips, codebook_size=codebook_size))
    by_id = {clip.clip_id: clip for clip in output.clips()}
    assert list(by_id) == sorted(clip.ref.clip_id for clip in clips)
    for encoded in clips:
        assert_same(by_id[encoded.ref.clip_id], encoded)
        assert_same(output.clip(encoded.ref.clip_id), encoded)


def test_an_output_reports_its_contents(store: DictStore) -> None:
    output = Output(store)
    assert (output.fingerprint, output.tokenizer.codebook_size) == ("f" * 32, 8192)
    assert output.num_clips == 5
    assert output.num_codes == sum(clip.num_codes for clip in [*CLIPS, *OTHERS])
    assert output.totals.rejected == {"truncated": 1}
    assert list(output.rejected()) == [REJECTED]
    shards = output.shards
    assert len(shards) == 2
    first, last = shards
    assert (first.key, first.uri) == ("shards/p-1-a.parquet", "mem://out/shards/p-1-a.parquet")
    assert (first.num_rows, first.num_clips, first.num_frames) == (5, 3, 39 + 1 + 9)
    assert (first.grid, last.grid) == ((4, 4), (2, 6))
    assert last.size_bytes == len(store.objects[last.key])
    assert shards[-1] == last
    assert list(shards[1:]) == [last]
    assert list(shards[5:]) == []
    with pytest.raises(IndexError):
        shards[2]


def test_unlisted_shards_are_ignored(store: DictStore) -> None:
    put_shard(store, "p-3-a", [encoded_clip(30)])
    store.objects["shards/p-4-a.parquet"] = b"half of one"
    output = Output(store)
    assert len(output.shards) == 2
    assert output.num_clips == len(list(output.clips())) == 5


def test_an_output_shows_what_was_committed_when_it_was_opened(store: DictStore) -> None:
    output = Output(store)
    late = encoded_clip(30)
    commit(store, 3, put_shard(store, "p-3-a", [late]))
    assert len(list(output.clips())) == output.num_clips == 5
    for clip_id in (late.ref.clip_id, REJECTED.ref.clip_id):
        with pytest.raises(NotFound, match=r"It may be rejected .*, or committed since"):
            output.clip(clip_id)
    assert Output(store).num_clips == 6
    assert_same(Output(store).clip(late.ref.clip_id), late)


def test_an_output_without_entries_is_empty() -> None:
    output = Output(store_with())
    assert (output.num_clips, output.num_codes, len(output.shards)) == (0, 0, 0)
    assert list(output.clips()) == []
    assert list(output.rejected()) == []
    assert output.to_table().num_rows == 0
    assert output.to_table().schema == shard_schema("uint16")
    with pytest.raises(NotFound, match="no tokenized clip 'x'"):
        output.clip("x")


def test_arrow_tables_have_the_rows_of_the_shards(store: DictStore) -> None:
    output = Output(store)
    table = output.to_table()
    assert table.schema == shard_schema("uint16")
    assert table.num_rows == 5 + 4
    assert [batch.num_rows for batch in output.iter_batches()] == [5, 4]
    assert table.column("codes")[0].as_py() == CLIPS[0].codes[0].ravel().tolist()
    some = output.to_table(["w", "codes"])
    assert some.column_names == ["w", "codes"]
    assert some.column("codes").to_pylist() == table.column("codes").to_pylist()
    captions = [row["caption"] for side in output.iter_side_tables() for row in side.to_pylist()]
    assert captions == ["caption 0", "caption 1", "caption 2", "caption 10", "caption 11"]


def reads(output: Output, clip: EncodedClip = CLIPS[0]) -> dict[str, Callable[[], Any]]:
    return {
        "clips": lambda: list(output.clips()),
        "clip": lambda: output.clip(clip.ref.clip_id),
        "table": lambda: output.to_table(),
        "one column": lambda: output.to_table(["t"]),
    }


@pytest.mark.parametrize("way", ["clips", "clip", "table", "one column"])
def test_every_way_to_read_a_shard_detects_flipped_bits(store: DictStore, way: str) -> None:
    key = "shards/p-1-a.parquet"
    sound = store.objects[key]
    reads(Output(store))[way]()
    # Throughout the file: magic bytes, pages, page index and footer.
    for bit in [*range(0, len(sound) * 8, len(sound) * 8 // 40), len(sound) * 8 - 1]:
        store.objects[key] = flipped(sound, bit)
        with pytest.raises(CorruptOutput, match=r"p-1-a\.parquet is damaged: its SHA-256"):
            reads(Output(store))[way]()


def test_a_row_group_damaged_after_the_first_access_is_detected(store: DictStore) -> None:
    output = Output(store)
    output.clip(CLIPS[0].ref.clip_id)  # verifies the whole shard; later reads are by range
    key = "shards/p-1-a.parquet"
    codes = CLIPS[0].codes[0].astype("<u2").tobytes()
    assert codes not in store.objects[key], "byte planes"
    at = store.objects[key].find(codes[::2][:16])
    assert at > 0, "small pages of uniform codes are stored uncompressed"
    store.objects[key] = flipped(store.objects[key], at * 8)
    with pytest.raises(CorruptOutput, match="row group 0"):
        output.clip(CLIPS[0].ref.clip_id)


@pytest.mark.parametrize("key", ["shards/p-2-a.parquet", "clips/p-2-a.parquet"])
def test_a_listed_object_that_is_missing_is_damage(store: DictStore, key: str) -> None:
    del store.objects[key]
    for way in ("clips", "clip"):
        with pytest.raises(CorruptOutput, match="it is missing, although the manifest lists it"):
            reads(Output(store), OTHERS[0])[way]()


def test_clips_before_a_damaged_shard_are_returned(store: DictStore) -> None:
    key = "shards/p-2-a.parquet"
    store.objects[key] = flipped(store.objects[key], 0)
    clips = Output(store).clips()
    for encoded in CLIPS:
        assert_same(next(clips), encoded)
    with pytest.raises(CorruptOutput, match=r"p-2-a\.parquet is damaged"):
        next(clips)


def test_a_damaged_or_wrong_side_table_is_detected(store: DictStore) -> None:
    key = "clips/p-1-a.parquet"
    store.objects[key] = flipped(store.objects[key], len(store.objects[key]) * 4)
    with pytest.raises(CorruptOutput, match=r"clips/p-1-a\.parquet is damaged: its SHA-256"):
        list(Output(store).clips())


@pytest.mark.parametrize("others", [OTHERS, OTHERS[:1]], ids=["as many clips", "fewer clips"])
def test_the_side_table_of_another_shard_is_detected(others: list[EncodedClip]) -> None:
    store = DictStore()
    begin(store)
    receipt, other = put_shard(store, "p-1-a", CLIPS[:2]), put_shard(store, "p-2-a", others)
    fields = ("side_table", "side_table_sha256", "side_table_size_bytes")
    commit(store, 0, replace(receipt, **{name: getattr(other, name) for name in fields}))
    for way in ("clips", "clip"):
        with pytest.raises(CorruptOutput, match=r"clips are not those of shards/p-1-a\.parquet"):
            reads(Output(store))[way]()


def test_a_shard_of_another_fingerprint_is_rejected(store: DictStore) -> None:
    small = [encoded_clip(30, (9,), (4, 4), 4096)]
    commit(store, 3, put_shard(store, "p-3-a", small, codebook_size=4096))
    with pytest.raises(CorruptOutput, match="mean something different"):
        list(Output(store).clips())


def test_random_access_keeps_few_shards_open() -> None:
    clips = [encoded_clip(row, (1,)) for row in range(40)]
    store = store_with(*([clip] for clip in clips))
    output = Output(store)
    for _ in range(2):
        for clip in clips:
            assert_same(output.clip(clip.ref.clip_id), clip)
    assert output.kept_open.cache_info().currsize == 16
    assert "get shards/p-3-a.parquet" in store.requests, "verified once as a whole"
    store.requests.clear()
    output.clip(clips[39].ref.clip_id)
    assert "get clips/p-40-a.parquet" not in store.requests


def test_outputs_open_by_uri(tmp_path: Path) -> None:
    uri = str(tmp_path / "out")
    with pytest.raises(NotFound, match=r"out has no job\.json"):
        open_output(uri)
    write_clips(Store(uri, StoreOptions()), [2, 1])
    output = open_output(uri)
    for row, clip in enumerate(output.clips()):
        assert_same(clip, encoded_clip(row, [5]))
    assert_same(output.clip(clip.clip_id), encoded_clip(2, [5]))


def test_reading_needs_neither_ray_nor_torch() -> None:
    heavy = {"ray", "torch", "decord", "av", "tokpipe.runtime"}
    code = f"import sys, tokpipe.reader; assert sys.modules.keys().isdisjoint({heavy})"
    subprocess.run([sys.executable, "-c", code], check=True)
