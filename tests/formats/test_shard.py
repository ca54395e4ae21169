import dataclasses
import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import tokpipe
from tests.formats.formats_helpers import encoded_clip, shard_metadata, zipf
from tokpipe.errors import CorruptOutput
from tokpipe.formats.shard import (
    CODES_PER_ROW_GROUP,
    ShardFooter,
    build_shard,
    codes_crc32,
    estimated_bytes,
    receipt_of,
)
from tokpipe.formats.shard_reader import ShardReader, check_shard
from tokpipe.types import ChunkSpan, EncodedClip

# As documented for strangers; written out so that no change of it goes unseen.
SCHEMA = """
clip_id: string; chunk_index: int32; n_chunks: int32; source_uri: string; start_pts_s: double;
end_pts_s: double; frame_start: int32; n_frames: int32; n_pad_frames: int32;
n_context_frames: int32; first_is_image: bool; fps: float; t: int16; h: int16; w: int16;
codes: list<element: CODE not null>; codes_crc32: uint32
"""


def changed(clip: EncodedClip, **fields: Any) -> EncodedClip:
    return dataclasses.replace(clip, **fields)


def parquet_of(clips: list[EncodedClip], codebook_size: int = 8192) -> pq.ParquetFile:
    return pq.ParquetFile(io.BytesIO(build_shard(clips, shard_metadata(codebook_size))))


def rows_of_groups(file: pq.ParquetFile) -> list[int]:
    return [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]


@pytest.mark.parametrize(
    ("codebook_size", "code"), [(65_536, "uint16"), (65_537, "uint32"), (2**31, "uint32")]
)
def test_the_schema_is_as_documented(codebook_size: int, code: str) -> None:
    file = parquet_of([encoded_clip(codebook_size=codebook_size)], codebook_size)
    found = "; ".join(f"{field.name}: {field.type}" for field in file.schema_arrow)
    assert found == " ".join(SCHEMA.split()).replace("CODE", code)
    assert not any(field.nullable for field in file.schema_arrow)


def test_the_footer_describes_the_codes() -> None:
    file = parquet_of([encoded_clip(0, (17, 5), (2, 3)), encoded_clip(1, (1,), (2, 3))])
    found = {key.decode(): value.decode() for key, value in file.metadata.metadata.items()}
    assert found == {
        "tokpipe.format_version": "1", "tokpipe.version": tokpipe.__version__,
        "tokpipe.fingerprint": "f" * 32, "tokpipe.grid": "2,3", "tokpipe.num_rows": "3",
        "tokpipe.num_codes": str((5 + 2 + 1) * 6),
        "tokpipe.tokenizer.name": "test", "tokpipe.tokenizer.weights_hash": "random, seed 0",
        "tokpipe.tokenizer.licence": "", "tokpipe.tokenizer.codebook_size": "8192",
        "tokpipe.tokenizer.code_dtype": "uint16", "tokpipe.tokenizer.bit_order": "",
        "tokpipe.tokenizer.temporal_stride": "4", "tokpipe.tokenizer.first_frames": "1",
        "tokpipe.tokenizer.spatial_stride": "8", "tokpipe.tokenizer.code_order": "t,h,w",
        "tokpipe.tokenizer.chunk_policy": "independent",
        "tokpipe.encoders": '{"cpu AVX2": 1, "cpu AVX512": 1}',
    }  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format_version", b"2", r"s has format 2, .* up to 1\. .* Upgrade tokpipe"),
        ("fingerprint", None, r"lacks the key tokpipe\.fingerprint"),
        ("grid", b"2", "does not describe a shard"),
        ("num_rows", b"\xff", "does not describe a shard"),
        ("encoders", b"[1]", "does not describe a shard"),
        ("tokenizer.code_dtype", b"int8", "does not describe a shard"),
        ("tokenizer.name", None, "does not describe a shard"),
    ],
    ids=str,
)
def test_an_incomplete_or_newer_footer_is_rejected(key: str, value: Any, message: str) -> None:
    footer = parquet_of([encoded_clip()]).metadata.metadata | {f"tokpipe.{key}".encode(): value}
    key_values = {key: value for key, value in footer.items() if value is not None}
    with pytest.raises(CorruptOutput, match=message):
        ShardFooter.of_key_values("mem://s", key_values)


def test_a_row_names_the_frames_of_its_codes() -> None:
    clip = encoded_clip(7, frames=(17, 17, 6), grid=(2, 3))
    rows = parquet_of([clip]).read().to_pylist()
    assert rows[2] == {
        "clip_id": clip.ref.clip_id, "chunk_index": 2, "n_chunks": 3,
        "source_uri": "s3://videos/7.mp4",
        "start_pts_s": 34 / 8 + 0.25, "end_pts_s": 39 / 8 + 0.25, "frame_start": 34,
        "n_frames": 6, "n_pad_frames": 3, "n_context_frames": 0, "first_is_image": True,
        "fps": 8.0, "t": 3, "h": 2, "w": 3, "codes": clip.codes[2].ravel().tolist(),
        "codes_crc32": zlib.crc32(clip.codes[2].astype("<u2").tobytes()),
    }  # fmt: skip


def test_the_crc_does_not_depend_on_the_memory_layout() -> None:
    codes = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
    expected = zlib.crc32(bytes(b for value in range(24) for b in (value, 0)))
    assert codes_crc32(codes) == expected
    assert codes_crc32(codes.astype(">u2")) == expected
    assert codes_crc32(np.asfortranarray(codes)) == expected


def test_a_shard_depends_on_its_clips_alone_not_on_their_order() -> None:
    clips = [encoded_clip(row) for row in range(5)]
    assert build_shard(clips[::-1], shard_metadata()) == build_shard(clips, shard_metadata())


@pytest.mark.parametrize("codebook_size", [1, 2, 65_535, 65_536, 65_537, 2**32])
def test_the_largest_code_survives(codebook_size: int) -> None:
    clip = encoded_clip(codebook_size=codebook_size)
    clip.codes[0][0, 0, 0] = codebook_size - 1
    data = build_shard([clip], shard_metadata(codebook_size))
    check_shard("mem://s", data, receipt_of("s", [clip], data, b""), shard_metadata(codebook_size))
    row = next(ShardReader("mem://s", data).rows())
    assert int(row.codes[0, 0, 0]) == codebook_size - 1


def test_shards_with_the_retired_byte_pairs_encoding_still_read() -> None:
    """Older versions wrote skewed codes as dictionaries whose indices have exactly 16 bits."""
    data = (Path(__file__).parent / "written/byte_pairs.parquet").read_bytes()
    shard = ShardReader("mem://s", data)
    for row, rows in enumerate(shard.clips()):
        for found, block in zip(rows, encoded_clip(row, grid=(4, 4)).codes, strict=True):
            np.testing.assert_array_equal(found.codes, block)
    assert shard.footer.num_rows == 6


def test_row_groups_hold_about_a_million_codes() -> None:
    # 5 x 128 x 128 = 81,920 codes a chunk: 12 of them stay below 2**20, 13 do not.
    clips = [encoded_clip(row, (17, 17, 17), (128, 128)) for row in range(9)]
    data = build_shard(clips, shard_metadata())
    assert rows_of_groups(pq.ParquetFile(io.BytesIO(data))) == [12, 12, 3]
    # A clip that straddles row groups is whole again when read.
    read = {rows[0].clip_id: rows for rows in ShardReader("mem://s", data).clips()}
    for clip in clips:
        codes = np.concatenate([row.codes for row in read[clip.ref.clip_id]])
        np.testing.assert_array_equal(codes, np.concatenate(clip.codes))
        found = ShardReader("mem://s", data).clip(clip.ref.clip_id)
        assert found is not None
        assert [row.chunk_index for row in found] == [0, 1, 2]
    assert ShardReader("mem://s", data).clip("no such clip") is None
    # A chunk larger than a row group gets its own.
    large = encoded_clip(0, (17, 17), (512, 512))
    assert large.codes[0].size > CODES_PER_ROW_GROUP
    assert rows_of_groups(parquet_of([large])) == [1, 1]


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
    flat = codes_of(codebook_size, np.random.default_rng(0), clip.num_codes)
    blocks = flat.astype(clip.codes[0].dtype).reshape(-1, 5, 32, 32)
    clip = changed(clip, codes=tuple(blocks))
    data = build_shard([clip], shard_metadata(codebook_size))
    bits = len(data) * 8 / clip.num_codes  # footer and all other columns included
    assert bits <= most_bits
    assert len(data) <= estimated_bytes(clip.num_codes, codebook_size)


CLIP = encoded_clip(0, (17, 5), (2, 3))
CODES = CLIP.codes


def with_codes(last: Any) -> EncodedClip:
    return changed(CLIP, codes=(CODES[0], last))


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
    "wide codes": ([with_codes(CODES[1].astype(np.uint32))], "codes of uint32, not uint16"),
    "another grid": ([CLIP, encoded_clip(1, grid=(3, 2))], r"of \(3, 2\) in a shard of \(2, 3\)"),
    "no latent frames": ([with_codes(np.empty((0, 2, 3), np.uint16))], r"shape \(0, 2, 3\)"),
    "a code out of range": (
        [with_codes(np.full_like(CODES[1], 8192))],
        "code 8192 of a codebook of 8192",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_inconsistent_clips_are_rejected(case: str) -> None:
    clips, message = BROKEN[case]
    with pytest.raises(ValueError, match=message):
        build_shard(clips, shard_metadata())
