import dataclasses
import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tokpipe
from tests.formats.formats_helpers import encoded_clip, encoded_clips, receipt_of, shard_metadata
from tokpipe.errors import CorruptOutput
from tokpipe.formats.shard import (
    CODES_PER_ROW_GROUP,
    ShardFooter,
    build_shard,
    codes_crc32,
    estimated_bytes,
)
from tokpipe.formats.shard_reader import ShardReader, check_shard
from tokpipe.types import ChunkSpan, EncodedClip

# As documented for strangers; written out so that no change of it goes unseen.
SCHEMA = """
clip_id: string not null
chunk_index: int32 not null
n_chunks: int32 not null
source_uri: string not null
start_pts_s: double not null
end_pts_s: double not null
frame_start: int32 not null
n_frames: int32 not null
n_pad_frames: int32 not null
n_context_frames: int32 not null
first_is_image: bool not null
fps: float not null
t: int16 not null
h: int16 not null
w: int16 not null
codes: list<element: CODE not null> not null
  child 0, element: CODE not null
codes_crc32: uint32 not null
"""


def parquet_of(clips: list[EncodedClip], codebook_size: int = 8192) -> pq.ParquetFile:
    return pq.ParquetFile(io.BytesIO(build_shard(clips, shard_metadata(codebook_size))))


@pytest.mark.parametrize(
    ("codebook_size", "code"), [(65_536, "uint16"), (65_537, "uint32"), (2**31, "uint32")]
)
def test_the_schema_is_as_documented(codebook_size: int, code: str) -> None:
    file = parquet_of([encoded_clip(codebook_size=codebook_size)], codebook_size)
    found = file.schema_arrow.remove_metadata().to_string()
    assert found == SCHEMA.strip().replace("CODE", code)


def test_the_footer_describes_the_codes() -> None:
    file = parquet_of([encoded_clip(0, (17, 5), (2, 3)), encoded_clip(1, (1,), (2, 3))])
    assert file.metadata.metadata == {
        b"tokpipe.format_version": b"1",
        b"tokpipe.version": tokpipe.__version__.encode(),
        b"tokpipe.fingerprint": b"f" * 32,
        b"tokpipe.tokenizer.name": b"test",
        b"tokpipe.tokenizer.weights_hash": b"random, seed 0",
        b"tokpipe.tokenizer.licence": b"",
        b"tokpipe.tokenizer.codebook_size": b"8192",
        b"tokpipe.tokenizer.code_dtype": b"uint16",
        b"tokpipe.tokenizer.bit_order": b"",
        b"tokpipe.tokenizer.temporal_stride": b"4",
        b"tokpipe.tokenizer.first_frames": b"1",
        b"tokpipe.tokenizer.spatial_stride": b"8",
        b"tokpipe.tokenizer.code_order": b"t,h,w",
        b"tokpipe.tokenizer.chunk_policy": b"independent",
        b"tokpipe.grid": b"2,3",
        b"tokpipe.num_rows": b"3",
        b"tokpipe.num_codes": str((5 + 2 + 1) * 6).encode(),
    }


def test_a_footer_of_a_newer_format_asks_for_an_upgrade() -> None:
    key_values = parquet_of([encoded_clip()]).metadata.metadata
    with pytest.raises(CorruptOutput, match=r"s has format 2, .* up to 1\. .* Upgrade tokpipe"):
        ShardFooter.of_key_values("mem://s", {**key_values, b"tokpipe.format_version": b"2"})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (b"tokpipe.fingerprint", None, r"lacks the key tokpipe\.fingerprint"),
        (b"tokpipe.grid", b"2", "does not describe a shard"),
        (b"tokpipe.num_rows", b"\xff", "does not describe a shard"),
        (b"tokpipe.tokenizer.code_dtype", b"int8", "does not describe a shard"),
        (b"tokpipe.tokenizer.name", None, "does not describe a shard"),
    ],
    ids=str,
)
def test_an_incomplete_footer_is_rejected(key: bytes, value: bytes | None, message: str) -> None:
    key_values = {**parquet_of([encoded_clip()]).metadata.metadata}
    if value is None:
        del key_values[key]
    else:
        key_values[key] = value
    with pytest.raises(CorruptOutput, match=message):
        ShardFooter.of_key_values("mem://s", key_values)


def test_a_row_names_the_frames_of_its_codes() -> None:
    clip = encoded_clip(7, frames=(17, 17, 6), grid=(2, 3))
    rows = parquet_of([clip]).read().to_pylist()
    last = {key: value for key, value in rows[2].items() if key != "codes"}
    assert last == {
        "clip_id": clip.ref.clip_id,
        "chunk_index": 2,
        "n_chunks": 3,
        "source_uri": "s3://videos/7.mp4",
        "start_pts_s": 34 / 8 + 0.25,
        "end_pts_s": 39 / 8 + 0.25,
        "frame_start": 34,
        "n_frames": 6,
        "n_pad_frames": 3,
        "n_context_frames": 0,
        "first_is_image": True,
        "fps": 8.0,
        "t": 3,
        "h": 2,
        "w": 3,
        "codes_crc32": zlib.crc32(clip.codes[2].astype("<u2").tobytes()),
    }
    assert rows[2]["codes"] == clip.codes[2].ravel().tolist()


def test_the_crc_does_not_depend_on_the_memory_layout() -> None:
    codes = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
    expected = zlib.crc32(bytes(b for value in range(24) for b in (value, 0)))
    assert codes_crc32(codes) == expected
    assert codes_crc32(codes.astype(">u2")) == expected
    assert codes_crc32(np.asfortranarray(codes)) == expected


@given(encoded_clips(), st.randoms())
@settings(max_examples=60)
def test_clips_survive_the_round_trip(clips: list[EncodedClip], order: Any) -> None:
    shuffled = list(clips)
    order.shuffle(shuffled)
    data = build_shard(shuffled, shard_metadata())
    assert data == build_shard(clips, shard_metadata()), "a shard depends on its clips alone"
    back = list(ShardReader("mem://shard", data).clips())
    for clip, rows in zip(sorted(clips, key=lambda c: c.ref.clip_id), back, strict=True):
        assert {row.clip_id for row in rows} == {clip.ref.clip_id}
        assert {row.source_uri for row in rows} == {clip.ref.source_uri}
        assert {row.fps for row in rows} == {clip.fps}
        for row, chunk, block in zip(rows, clip.chunks, clip.codes, strict=True):
            assert row.codes.dtype == block.dtype
            np.testing.assert_array_equal(row.codes, block)
            assert (row.frame_start, row.n_frames) == (chunk.first_frame, chunk.num_frames)
            assert (row.n_pad_frames, row.n_context_frames) == (chunk.num_pad_frames, 0)
            assert row.start_pts_s == clip.pts_s[chunk.first_frame]
            assert row.end_pts_s == clip.pts_s[chunk.first_frame + chunk.num_frames - 1]


@pytest.mark.parametrize("codebook_size", [1, 2, 65_535, 65_536, 65_537, 2**32])
def test_the_largest_code_survives(codebook_size: int) -> None:
    clip = encoded_clip(codebook_size=codebook_size)
    clip.codes[0][0, 0, 0] = codebook_size - 1
    data = build_shard([clip], shard_metadata(codebook_size))
    check_shard("mem://s", data, receipt_of("s", [clip], data), shard_metadata(codebook_size))
    row = next(ShardReader("mem://s", data).rows())
    assert int(row.codes[0, 0, 0]) == codebook_size - 1


def test_shards_with_the_retired_byte_pairs_encoding_still_read() -> None:
    """Older versions wrote skewed codes as dictionaries whose indices have exactly 16 bits."""
    data = (Path(__file__).parent / "written/byte_pairs.parquet").read_bytes()
    shard = ShardReader("mem://s", data)
    for row, rows in enumerate(shard.clips()):
        clip = encoded_clip(row, (17, 17, 5), (4, 4))
        for found, block in zip(rows, clip.codes, strict=True):
            np.testing.assert_array_equal(found.codes, block)
    assert shard.footer.num_rows == 6


def test_row_groups_hold_about_a_million_codes() -> None:
    # 5 x 128 x 128 = 81,920 codes a chunk: 12 of them stay below 2**20, 13 do not.
    clips = [encoded_clip(row, (17, 17, 17), (128, 128)) for row in range(9)]
    data = build_shard(clips, shard_metadata())
    metadata = pq.ParquetFile(io.BytesIO(data)).metadata
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    assert [group.num_rows for group in groups] == [12, 12, 3]
    # A clip that straddles row groups is whole again when read.
    read = {rows[0].clip_id: rows for rows in ShardReader("mem://s", data).clips()}
    for clip in clips:
        rows = read[clip.ref.clip_id]
        np.testing.assert_array_equal(
            np.concatenate([row.codes for row in rows]), np.concatenate(clip.codes)
        )
        found = ShardReader("mem://s", data).clip(clip.ref.clip_id)
        assert found is not None
        assert [row.chunk_index for row in found] == [0, 1, 2]
    assert ShardReader("mem://s", data).clip("no such clip") is None


def test_a_chunk_larger_than_a_row_group_gets_its_own() -> None:
    clip = encoded_clip(0, (17, 17), (512, 512))
    assert clip.codes[0].size > CODES_PER_ROW_GROUP
    metadata = parquet_of([clip]).metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [1, 1]


def test_all_columns_but_codes_have_statistics_and_a_page_index() -> None:
    group = parquet_of([encoded_clip()]).metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    codes = columns.pop("codes.list.element")
    assert codes.statistics is None
    assert not codes.has_column_index
    for name, column in columns.items():
        assert column.has_column_index, name
        assert column.statistics.has_min_max, name
    assert "RLE_DICTIONARY" in columns["source_uri"].encodings


def uniform(codebook_size: int, rng: np.random.Generator, num: int) -> Any:
    return rng.integers(0, codebook_size, num)


def zipf(codebook_size: int, rng: np.random.Generator, num: int) -> Any:
    weights = 1 / np.arange(1, codebook_size + 1)
    ranks = rng.choice(codebook_size, num, p=weights / weights.sum())
    return rng.permutation(codebook_size)[ranks]


def few(codebook_size: int, rng: np.random.Generator, num: int) -> Any:
    return rng.choice([7, 999, 4321, codebook_size - 1], num)


@pytest.mark.parametrize(
    ("codes_of", "codebook_size", "most_bits"),
    [
        (uniform, 8192, 13.14),  # byte planes
        (uniform, 64_000, 16.1),
        (uniform, 65_536, 16.1),
        (uniform, 262_144, 18.6),
        (zipf, 8192, 12.0),
        (zipf, 64_000, 14.4),
        (few, 8192, 2.1),  # a dictionary
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_bits_on_disk_per_code(codes_of: Any, codebook_size: int, most_bits: float) -> None:
    clip = encoded_clip(0, (17,) * 200, (32, 32), codebook_size)  # 1,024,000 codes
    rng = np.random.default_rng(0)
    flat = codes_of(codebook_size, rng, clip.num_codes).astype(clip.codes[0].dtype)
    blocks = tuple(flat.reshape(-1, 5, 32, 32))
    clip = dataclasses.replace(clip, codes=blocks)
    data = build_shard([clip], shard_metadata(codebook_size))
    bits = len(data) * 8 / clip.num_codes  # footer and all other columns included
    assert bits <= most_bits
    assert len(data) <= estimated_bytes(clip.num_codes, codebook_size)


def changed(clip: EncodedClip, **fields: Any) -> EncodedClip:
    return dataclasses.replace(clip, **fields)


CLIP = encoded_clip(0, (17, 5), (2, 3))
BROKEN = {
    "no clips": ([], "at least one clip"),
    "a clip twice": ([CLIP, CLIP], "appears twice"),
    "no chunks": ([changed(CLIP, chunks=(), codes=())], "0 chunks with 0 blocks"),
    "codes missing": ([changed(CLIP, codes=CLIP.codes[:1])], "2 chunks with 1 blocks"),
    "a gap between chunks": (
        [changed(CLIP, chunks=(CLIP.chunks[0], ChunkSpan(1, 18, 4, 0, 0, 0, True)))],
        "must start at frame 17",
    ),
    "chunks out of order": (
        [changed(CLIP, chunks=CLIP.chunks[::-1], codes=CLIP.codes[::-1])],
        "must start at frame 0",
    ),
    "frames without chunk": ([changed(CLIP, pts_s=np.zeros(23))], "cover 22 of its 23 frames"),
    "wide codes": (
        [changed(CLIP, codes=tuple(block.astype(np.uint32) for block in CLIP.codes))],
        "codes of uint32, not uint16",
    ),
    "another grid": (
        [CLIP, encoded_clip(1, grid=(3, 2))],
        r"grid of \(3, 2\) in a shard of \(2, 3\)",
    ),
    "no latent frames": (
        [changed(CLIP, codes=(CLIP.codes[0], np.empty((0, 2, 3), np.uint16)))],
        r"shape \(0, 2, 3\)",
    ),
    "a code out of range": (
        [changed(CLIP, codes=tuple(np.full_like(block, 8192) for block in CLIP.codes))],
        "code 8192 of a codebook of 8192",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_inconsistent_clips_are_rejected(case: str) -> None:
    clips, message = BROKEN[case]
    with pytest.raises(ValueError, match=message):
        build_shard(clips, shard_metadata())
