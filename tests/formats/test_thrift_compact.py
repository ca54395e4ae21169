from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokpipe.formats.thrift_compact import (
    BINARY,
    DOUBLE,
    FALSE,
    I8,
    I16,
    I32,
    I64,
    LIST,
    SET,
    STRUCT,
    TRUE,
    read_struct,
    varint,
    write_struct,
)

SIMPLE = {
    I8: st.integers(0, 255),
    I16: st.integers(-(2**15), 2**15 - 1),
    I32: st.integers(-(2**31), 2**31 - 1),
    I64: st.integers(-(2**63), 2**63 - 1),
    DOUBLE: st.binary(min_size=8, max_size=8),
    BINARY: st.binary(max_size=200),
}


def fields(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.dictionaries(st.integers(1, 200), inner, max_size=6).map(
        lambda value: dict(sorted(value.items()))
    )


def of_kind(kind: int, values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return values.map(lambda value: (kind, value))


SCALARS = st.one_of(
    *(of_kind(kind, values) for kind, values in SIMPLE.items()),
    st.booleans().map(lambda value: (TRUE if value else FALSE, value)),
)
LISTS = st.one_of(
    *(
        st.tuples(st.sampled_from([LIST, SET]), of_kind(kind, st.lists(values, max_size=20)))
        for kind, values in SIMPLE.items()
    )
)
STRUCTS = st.recursive(
    fields(st.one_of(SCALARS, LISTS)),
    lambda inner: fields(
        st.one_of(
            SCALARS,
            of_kind(STRUCT, inner),
            of_kind(LIST, of_kind(STRUCT, st.lists(inner, max_size=3))),
        )
    ),
    max_leaves=8,
)


@given(STRUCTS, st.binary(max_size=5), st.binary(max_size=5))
def test_structs_make_the_round_trip(value: Any, before: bytes, after: bytes) -> None:
    data = write_struct(value)
    assert read_struct(before + data + after, len(before)) == (value, len(before) + len(data))


def test_parquet_footers_are_written_again_as_they_were() -> None:
    table = pa.table(
        {
            "text": ["a", None, "c" * 300],
            "number": [1, -(2**40), None],
            "time": pa.array([1, 2, 3], pa.timestamp("us", "UTC")),
            "list": [[1.5], [], None],
            **{f"column {i}": [True, False, None] for i in range(20)},
        }
    )
    sink = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata({"key": "value"}),
        sink,
        row_group_size=1,
        sorting_columns=None,
    )
    data = sink.getvalue()
    footer = data[-8 - int.from_bytes(data[-8:-4], "little") : -8]
    value, end = read_struct(footer)
    assert end == len(footer)
    assert write_struct(value) == footer


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="type 11 of the compact protocol"):
        read_struct(bytes([0x1B, 0, 0]))


@pytest.mark.parametrize(
    ("value", "data"),
    [(0, "00"), (127, "7f"), (128, "8001"), (300, "ac02"), (2**35, "808080808001")],
)
def test_numbers_are_in_groups_of_seven_bits(value: int, data: str) -> None:
    assert varint(value).hex() == data
