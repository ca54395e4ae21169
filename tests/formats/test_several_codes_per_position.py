"""Shards whose positions have several codes, and codes of 64 bits."""

import io
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.formats.formats_helpers import encoded_clip, shard_metadata
from tokpipe.errors import CorruptOutput
from tokpipe.formats.shard import ShardMetadata, build_shard, codes_crc32
from tokpipe.formats.shard_reader import ShardReader
from tokpipe.types import EncodedClip

SIZES = (8, 300, 70_000)


def metadata(sizes: tuple[int, ...] = SIZES) -> ShardMetadata:
    plain = shard_metadata(max(sizes))
    several = {
        "codes_per_position": len(sizes), "codebook_sizes": sizes, "code_order": "t,h,w,c",
    }  # fmt: skip
    return replace(plain, tokenizer=plain.tokenizer.model_copy(update=several))


def clip(sizes: tuple[int, ...] = SIZES, number: int = 0) -> EncodedClip:
    one = encoded_clip(number, (17, 5), (2, 3), codebook_size=max(sizes))
    rng = np.random.default_rng(number)
    blocks = [
        np.stack([rng.integers(0, size, block.shape) for size in sizes], axis=-1)
        for block in one.codes
    ]
    return replace(one, codes=tuple(block.astype(np.uint32) for block in blocks))


def test_codes_of_several_codebooks_come_back_in_their_shape() -> None:
    clips = [clip(number=number) for number in range(3)]
    shard = ShardReader("s", build_shard(clips, metadata()))
    assert shard.footer.metadata == metadata()
    assert shard.footer.num_codes == 3 * (5 + 2) * 6 * 3
    wanted = sorted(clips, key=lambda one: one.ref.clip_id)
    for found, one in zip(shard.clips(), wanted, strict=True):
        for row, block in zip(found, one.codes, strict=True):
            assert row.codes.shape == (*block.shape[:3], 3)
            assert np.array_equal(row.codes, block)
            assert codes_crc32(row.codes) == codes_crc32(block)


def test_the_column_c_and_the_flat_order_are_as_documented() -> None:
    (one,) = [clip()]
    table = pq.read_table(io.BytesIO(build_shard([one], metadata())))
    assert table.schema.field("c").type == "int16"
    assert table.column_names[-4:] == ["w", "c", "codes", "codes_crc32"]
    assert table.column("c").to_pylist() == [3, 3]
    assert table.column("codes")[0].as_py() == one.codes[0].ravel().tolist()


@pytest.mark.parametrize("codebook", [0, 1])
def test_a_code_must_be_in_its_own_codebook(codebook: int) -> None:
    one = clip()
    one.codes[1][1, 1, 2, codebook] = SIZES[codebook]
    message = f"chunk 1 has code {SIZES[codebook]} of a codebook of {SIZES[codebook]}"
    with pytest.raises(ValueError, match=message):
        build_shard([one], metadata())
    equal = metadata((70_000, 70_000, 70_000))
    data = build_shard([one], equal)
    shard = ShardReader("s", data)
    shard.tokenizer = metadata().tokenizer
    found = f"row 1 of row group 0 has code {SIZES[codebook]} of a codebook of {SIZES[codebook]}"
    with pytest.raises(CorruptOutput, match=found):
        list(shard.rows())


@pytest.mark.parametrize("shape", [(5, 2, 3), (5, 2, 3, 2), (5, 2, 3, 3, 1)])
def test_blocks_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    one = clip()
    blocks = (np.zeros(shape, one.codes[0].dtype), one.codes[1])
    with pytest.raises(ValueError, match=r"chunk 0 has codes of shape .* not t,h,w,c"):
        build_shard([replace(one, codes=blocks)], metadata())


def test_codes_of_64_bits_come_back() -> None:
    plain = shard_metadata(2**32)
    spec = plain.tokenizer.model_copy(update={"codebook_size": 2**63, "code_dtype": "uint64"})
    rng = np.random.default_rng(0)
    one = encoded_clip(0, (9,), (2, 3))
    block = rng.integers(0, 2**63, one.codes[0].shape, dtype=np.uint64)
    block[0, 0, 0] = 2**63 - 1
    data = build_shard([replace(one, codes=(block,))], replace(plain, tokenizer=spec))
    ((row,),) = ShardReader("s", data).clips()
    assert row.codes.dtype == np.uint64
    assert np.array_equal(row.codes, block)
