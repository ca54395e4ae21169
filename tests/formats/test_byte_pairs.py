"""Codes whose pages were replaced are the same codes, to every reader, in fewer bytes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokpipe.formats.byte_pairs import MOST_PAIRS, pair_dictionary, with_byte_pairs
from tokpipe.formats.thrift_compact import read_struct

COLUMN = "codes.list.element"


def parquet(
    rows: list[NDArray[Any]], *, rows_per_group: int = 10**6, page_bytes: int = 2**20
) -> bytes:
    """A file of lists as ``with_byte_pairs`` takes them, between two other columns."""
    kind = pa.from_numpy_dtype(rows[0].dtype)
    element = pa.field("element", kind, nullable=False)
    schema = pa.schema(
        [
            pa.field("name", pa.string(), nullable=False),
            pa.field("codes", pa.list_(element), nullable=False),
            pa.field("number", pa.int64()),
        ]
    )
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int32)
    columns = [
        pa.array([f"row {i // 3}" for i in range(len(rows))]),
        pa.ListArray.from_arrays(
            offsets, pa.array(np.concatenate(rows)), type=schema.field("codes").type
        ),
        pa.array([None if i % 2 else i for i in range(len(rows))], pa.int64()),
    ]
    sink = io.BytesIO()
    pq.write_table(
        pa.Table.from_arrays(columns, schema=schema),
        sink,
        row_group_size=rows_per_group,
        data_page_size=page_bytes,
        write_batch_size=64,
        compression={"name": "zstd", COLUMN: "none", "number": "snappy"},
        use_dictionary=["name"],
        column_encoding={COLUMN: "PLAIN"},
        write_statistics=["name", "number"],
        write_page_index=True,
        write_page_checksum=True,
    )
    return sink.getvalue()


def paired(data: bytes) -> bytes:
    codes = pq.read_table(io.BytesIO(data)).column("codes").combine_chunks().flatten().to_numpy()
    return with_byte_pairs(data, COLUMN, pair_dictionary(np.bincount(codes)))


def read(data: bytes, **options: Any) -> pa.Table:
    return pq.read_table(io.BytesIO(data), page_checksum_verification=True, **options)


def zipf(num_values: int, num: int) -> NDArray[np.uint16]:
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, num_values + 1)
    names = rng.permutation(num_values).astype(np.uint16)
    return names[rng.choice(num_values, num, p=weights / weights.sum())]


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_lists_make_the_round_trip(dtype: Any, data: st.DataObject) -> None:
    largest = data.draw(st.sampled_from([0, 1, 255, 8191, int(np.iinfo(dtype).max) >> 12]))
    lists = st.lists(st.integers(0, largest), min_size=1, max_size=50)
    rows = [np.array(row, dtype) for row in data.draw(st.lists(lists, min_size=1, max_size=20))]
    before = parquet(
        rows,
        rows_per_group=data.draw(st.integers(1, 8)),
        page_bytes=data.draw(st.sampled_from([64, 2**20])),
    )
    after = paired(before)
    assert read(after).equals(read(before))
    assert pq.read_schema(io.BytesIO(after)).equals(pq.read_schema(io.BytesIO(before)))


@pytest.mark.parametrize("num_values", [300, 2**15, 2**15 + 1, MOST_PAIRS])
def test_every_number_of_values_has_its_indices(num_values: int) -> None:
    rng = np.random.default_rng(0)
    codes = np.concatenate([rng.permutation(num_values), rng.integers(0, num_values, 10_000)])
    dictionary = pair_dictionary(np.bincount(codes))
    assert 2**15 < len(dictionary.values) <= 2**16, "or an index would not have 16 bits"
    np.testing.assert_array_equal(dictionary.values[dictionary.indices[codes]], codes)
    before = parquet(np.split(codes.astype(np.uint16), [100, 5000]))
    assert read(paired(before)).equals(read(before))


def test_skewed_codes_are_stored_near_their_entropy() -> None:
    codes = zipf(8192, 2**20)
    shares = np.bincount(codes) / len(codes)
    entropy = -(shares[shares > 0] * np.log2(shares[shares > 0])).sum()
    file = pq.ParquetFile(io.BytesIO(paired(parquet(np.split(codes, 200 * np.arange(1, 200))))))
    column = file.metadata.row_group(0).column(1)
    assert column.total_compressed_size * 8 / len(codes) < 1.05 * entropy


def test_the_footer_describes_what_is_there() -> None:
    rows = np.split(zipf(8192, 60_000), range(100, 60_000, 100))
    before = parquet(rows, rows_per_group=200, page_bytes=20_000)
    after = paired(before)
    old, new = (pq.read_metadata(io.BytesIO(data)) for data in (before, after))
    assert (new.num_rows, new.num_row_groups) == (old.num_rows, old.num_row_groups) == (600, 3)
    at = 4
    for group in range(3):
        columns = [new.row_group(group).column(i) for i in range(3)]
        for i, column in enumerate(columns):
            first = column.dictionary_page_offset or column.data_page_offset
            assert first == at
            at += column.total_compressed_size
            was = old.row_group(group).column(i)
            assert column.num_values == was.num_values
            if i != 1:
                assert column.statistics == was.statistics
                assert column.compression == was.compression
        assert set(columns[1].encodings) == {"PLAIN", "RLE", "RLE_DICTIONARY"}
        assert columns[1].compression == "ZSTD"
        assert new.row_group(group).total_byte_size == sum(
            column.total_uncompressed_size for column in columns
        )


def test_page_indexes_point_to_pages() -> None:
    rows = np.split(zipf(8192, 60_000), range(100, 60_000, 100))
    data = paired(parquet(rows, rows_per_group=200, page_bytes=20_000))
    footer, _ = read_struct(data, len(data) - 8 - int.from_bytes(data[-8:-4], "little"))
    num_pages = 0
    for group in footer[4][1][1]:
        for chunk in group[1][1][1]:
            (_, meta), (_, start), (_, length) = chunk[3], chunk[4], chunk[5]
            index, end = read_struct(data, start)
            assert end == start + length
            for location in index[1][1][1]:
                (_, offset), (_, size) = location[1], location[2]
                header, content = read_struct(data, offset)
                assert header[1][1] == 0, "a data page"
                assert content + header[3][1] == offset + size
                num_pages += meta[3][1][1][0] == b"codes"
            assert index[1][1][1][0][1][1] == meta[9][1]
            if 6 in chunk:
                _, end = read_struct(data, chunk[6][1])
                assert end == chunk[6][1] + chunk[7][1]
    assert num_pages > 6, "several pages in each of three row groups"


def test_a_flipped_bit_is_noticed_by_the_checksums_of_pages() -> None:
    data = paired(parquet([zipf(8192, 20_000)]))
    column = pq.read_metadata(io.BytesIO(data)).row_group(0).column(1)
    pages = (column.dictionary_page_offset, column.data_page_offset)
    ends = (column.data_page_offset, pages[0] + column.total_compressed_size)
    for start, end in zip(pages, ends, strict=True):
        for at in np.linspace(start + 60, end - 1, 20).astype(int):
            damaged = bytearray(data)
            damaged[at] ^= 1
            with pytest.raises(OSError, match="CRC"):
                read(bytes(damaged))


def test_duckdb_reads_the_same_codes(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb", minversion="2.0")  # has no build for Python 3.10
    rows = np.split(zipf(8192, 60_000), range(100, 60_000, 100))
    data = paired(parquet(rows, rows_per_group=200, page_bytes=20_000))
    (tmp_path / "t.parquet").write_bytes(data)
    query = f"select codes, number from '{tmp_path}/t.parquet'"
    found = duckdb.connect().execute(query).fetchall()
    assert [row for row, _ in found] == [row.tolist() for row in rows]
    assert [number for _, number in found] == read(data).column("number").to_pylist()
