import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.formats.formats_helpers import encoded_clip, flipped, parquet, shard_metadata
from tokpipe.errors import CorruptOutput
from tokpipe.formats.shard import build_shard, receipt_of, shard_schema
from tokpipe.formats.shard_reader import ShardReader, check_shard

CLIPS = [encoded_clip(row, (17, 17, 5), (8, 8)) for row in range(8)]
METADATA = shard_metadata()
SHARD = build_shard(CLIPS, METADATA)
RECEIPT = receipt_of("p-1-a", CLIPS, SHARD, b"")
URI = "mem://out/shards/p-1-a.parquet"


def codes_pages() -> tuple[int, int]:
    """First and last byte of the codes' only page, by the footer of the sound shard."""
    column = pq.ParquetFile(pa.BufferReader(SHARD)).metadata.row_group(0).column(15)
    start = column.data_page_offset
    return start, start + column.total_compressed_size


@given(st.integers(0, len(SHARD) * 8 - 1))
@settings(max_examples=300)
def test_the_manifest_detects_any_flipped_bit(bit: int) -> None:
    with pytest.raises(CorruptOutput, match="SHA-256"):
        check_shard(URI, flipped(SHARD, bit), RECEIPT, METADATA)


@given(st.integers(codes_pages()[0] * 8, codes_pages()[1] * 8 - 1))
@settings(max_examples=300)
def test_flipped_bits_in_codes_are_detected_without_the_manifest(bit: int) -> None:
    # Page header or page: whatever Parquet itself lets pass, the rows' CRCs must not.
    try:
        rows = list(ShardReader(URI, flipped(SHARD, bit)).rows())
    except CorruptOutput:
        return
    # Some bits of a page's header mean nothing to a reader. Then nothing may have changed.
    for row, sound in zip(rows, ShardReader(URI, SHARD).rows(), strict=True):
        assert row.clip_id == sound.clip_id
        np.testing.assert_array_equal(row.codes, sound.codes)


@pytest.mark.parametrize("length", [0, 1, 4, 100, len(SHARD) // 2, len(SHARD) - 1])
def test_a_truncated_shard_is_rejected_with_advice(length: int) -> None:
    with pytest.raises(CorruptOutput) as caught:
        check_shard(URI, SHARD[:length], RECEIPT, METADATA)
    assert str(caught.value) == (
        f"{URI} is damaged: it has {length} bytes, but the manifest lists {len(SHARD)}. "
        "Reading it could silently return wrong codes. Restore the object from a copy or an older "
        "version; if there is none, tokenize the dataset again to a new output prefix."
    )
    with pytest.raises(CorruptOutput, match="does not open as a shard"):
        ShardReader(URI, SHARD[:length])


def rewritten(change: Any, schema: pa.Schema | None = None) -> bytes:
    """The shard with its table changed and every Parquet checksum right again."""
    file = pq.ParquetFile(pa.BufferReader(SHARD))
    table = change(file.read())
    sink = pa.BufferOutputStream()
    schema = schema or shard_schema("uint16")
    with pq.ParquetWriter(sink, schema, store_schema=False, write_page_checksum=True) as writer:
        writer.write_table(pa.table(table.columns, schema=schema))
        writer.add_key_value_metadata(file.metadata.metadata)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def with_column(name: str, values: Any) -> Any:
    def change(table: pa.Table) -> pa.Table:
        index = table.schema.get_field_index(name)
        return table.set_column(index, table.schema.field(index), pa.array(values(table[name])))

    return change


def swapped(column: Any) -> Any:
    return column.take([1, 0, *range(2, len(column))]).combine_chunks()


def first_is(value: Any) -> Any:
    return lambda column: pa.array([value, *column.to_pylist()[1:]], column.type)


TAMPERED = {
    "codes of another row": (with_column("codes", swapped), r"row \d+ of .* of CRC-32 .*, not "),
    "another crc": (with_column("codes_crc32", first_is(1)), "of CRC-32 .*, not 00000001"),
    "too few codes": (with_column("codes", first_is([1, 2])), "2 codes for a grid of"),
    "another grid": (
        lambda table: with_column("h", first_is(4))(with_column("w", first_is(16))(table)),
        r"row 0 of row group 0 has grid \(4, 16\) in a shard of 8x8",
    ),
    "negative sides": (
        lambda table: with_column("t", first_is(-3))(with_column("h", first_is(-8))(table)),
        r"row 0 of row group 0 has grid \(-8, 8\)",
    ),
    "negative frames": (with_column("t", first_is(-1)), "codes for a grid of"),
    "rows out of order": (lambda table: table.take([1, 0, *range(2, 24)]), "has chunks"),
    "clips out of order": (
        lambda table: table.take([3, 4, 5, 0, 1, 2, *range(6, 24)]),
        "follows clip .*, out of order",
    ),
    "a row twice": (lambda table: table.take([0, 0, *range(2, 24)]), "has chunks"),
    "another number of chunks": (with_column("n_chunks", first_is(4)), "has chunks"),
    "a row missing": (lambda table: table.slice(1), "has 23 rows, but its footer says 24"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_inconsistent_content_is_rejected(case: str) -> None:
    change, message = TAMPERED[case]
    with pytest.raises(CorruptOutput, match=message):
        list(ShardReader(URI, rewritten(change)).clips())


def test_rewriting_without_a_change_leaves_the_shard_valid() -> None:
    assert len(list(ShardReader(URI, rewritten(lambda table: table)).clips())) == 8


def test_a_code_beyond_the_codebook_is_rejected() -> None:
    small = shard_metadata(100)
    data = build_shard([encoded_clip(0, codebook_size=100)], small)
    # The same file under a footer that promises fewer codes.
    shard = ShardReader(URI, data)
    assert max(int(row.codes.max()) for row in shard.rows()) > 50
    spec = small.tokenizer.model_copy(update={"codebook_size": 50})
    shard.tokenizer = spec
    with pytest.raises(CorruptOutput, match="of a codebook of 50"):
        list(shard.rows())


def test_other_parquet_files_are_rejected() -> None:
    schema = shard_schema("uint16")
    wide = schema.set(15, pa.field("codes", pa.list_(pa.int64()), nullable=False))
    data = rewritten(lambda table: table.cast(wide), wide)
    with pytest.raises(CorruptOutput, match="columns are not those of a shard"):
        ShardReader(URI, data)
    with pytest.raises(CorruptOutput, match=r"its footer lacks the key tokpipe\.format_version"):
        ShardReader(URI, parquet(pa.table({"a": [1]})))


def test_a_shard_of_another_fingerprint_is_rejected() -> None:
    other = dataclasses.replace(METADATA, fingerprint="0" * 32)
    with pytest.raises(CorruptOutput, match=f"made with fingerprint {'f' * 32} .* {'0' * 32}"):
        check_shard(URI, SHARD, RECEIPT, other)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        *((f"num_{what}", 1, "the manifest lists") for what in ("rows", "codes", "frames")),
        ("clips", RECEIPT.clips[:-1], "its 8 clips are not those"),
    ],
)
def test_a_receipt_of_another_shard_is_rejected(field: str, value: Any, message: str) -> None:
    changed: Any = {field: value}
    with pytest.raises(CorruptOutput, match=message):
        check_shard(URI, SHARD, dataclasses.replace(RECEIPT, **changed), METADATA)
