"""Arrow tables as Parquet bytes, and the schemas of tokpipe's own columns."""

import io
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokpipe.formats.checks import as_damage

UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)  # What pyarrow raises for a bad file
_MAX_ROWS, _MAX_BYTES = 2**24, 2**31  # Of one of tokpipe's own tables, once decoded
_ROWS_PER_BYTE = 100  # Of any table: rows that are all the same take nearly no space
_BUFFERS_BYTES = 64 * 2**20  # Read-ahead of all columns together


def required(columns: Mapping[str, pa.DataType]) -> pa.Schema:
    """Return a schema of columns that are never null."""
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


def to_parquet(table: pa.Table) -> bytes:
    """Return a table as Parquet, with page checksums and the Arrow schema, which has more types."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return bytes(sink.getvalue())


def check_bounds(metadata: Any) -> None:
    """Raise ArrowInvalid if a few bytes of Parquet claim to be gigabytes."""
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    sizes = [one.total_uncompressed_size for one in columns]  # to_dict() reads statistics too
    if not 0 <= metadata.num_rows <= _MAX_ROWS or sum(map(abs, sizes)) > _MAX_BYTES:
        raise pa.ArrowInvalid(f"it claims {metadata.num_rows:,} rows and {sum(sizes):,} bytes")


def from_parquet(
    uri: str,
    data: bytes,
    kind: str,
    *,
    columns: list[str] | Callable[[list[str]], list[str]] | None = None,
) -> pa.Table:
    """Parse what ``to_parquet`` wrote; ``kind`` names it in the error.

    ``columns`` are those to read, or chooses them among the names that there are.
    """
    with as_damage(uri, f"it does not open as a {kind}", *UNREADABLE):
        metadata = pq.read_metadata(pa.BufferReader(data))
        check_bounds(metadata)
        schema = pq.ParquetFile(pa.BufferReader(data), metadata=metadata).schema_arrow
        file = pq.ParquetFile(
            pa.BufferReader(data),
            metadata=metadata,
            page_checksum_verification=True,
            read_dictionary=texts_of(metadata),
        )
        names = schema.names
        columns = columns(names) if callable(columns) else columns
        if len(set(names)) < len(names) or not set(columns or ()) <= set(names):
            raise pa.ArrowInvalid(f"some of its columns {names[:50]} repeat, or some are missing")
        # Not in pyarrow's threads: one that drops the bytes as Python exits aborts the process.
        table = file.read(columns, use_threads=False)
        check_text_bytes(table.columns)
        return table.cast(pa.schema([schema.field(name) for name in table.column_names]))


def texts_of(metadata: Any) -> list[str]:
    """The columns of texts, to be read as dictionaries: as Parquet stores it, one long text may
    fill many rows, and would be copied into each. Arrow cannot read all nested ones that way."""
    columns = map(metadata.schema.column, range(metadata.num_columns))
    return [
        one.path for one in columns if one.physical_type == "BYTE_ARRAY" and one.path == one.name
    ]


def check_text_bytes(columns: Iterable[pa.Array | pa.ChunkedArray]) -> None:
    """Raise ArrowInvalid if the dictionaries among columns would become gigabytes of texts."""
    num_bytes = 0
    for chunk in (chunk for one in columns for chunk in getattr(one, "chunks", [one])):
        values = chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk
        if isinstance(values, pa.DictionaryArray):
            lengths = pc.binary_length(values.dictionary).cast(pa.int64()).take(values.indices)
            num_bytes += pc.sum(lengths, min_count=0).as_py()
    if num_bytes > _MAX_BYTES:
        raise pa.ArrowInvalid(f"its texts would take {num_bytes:,} bytes")


def check_texts(uri: str, table: pa.Table, **patterns: str) -> None:
    """Raise CorruptOutput unless all texts are UTF-8 and match the pattern of their column."""
    with as_damage(uri, "its values are not what tokpipe writes", pa.ArrowException):
        table.validate(full=True)
        for name in patterns.keys() & set(table.column_names):
            is_valid = pc.match_substring_regex(table.column(name), patterns[name])
            if not pc.all(is_valid, min_count=0).as_py():
                raise pa.ArrowInvalid(f"a {name} does not match {patterns[name]}")


def rows_of(uri: str, rows: pa.RecordBatch) -> list[dict[str, Any]]:
    """Return rows with columns of any type as Python values; CorruptOutput if it has none."""
    with as_damage(uri, "its values cannot be read", pa.ArrowException, OverflowError, ValueError):
        return list(rows.to_pylist())


def stream_parquet(file: BinaryIO, *, as_dictionaries: bool = False) -> Any:
    """Open Parquet for reading batches in bounded memory, texts as such or ``as_dictionaries``."""
    metadata = pq.read_metadata(file)
    num_bytes = file.seek(0, io.SEEK_END)
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    num_rows = max(metadata.num_rows, sum(group.num_rows for group in groups))
    if num_rows > _MAX_ROWS + _ROWS_PER_BYTE * num_bytes:
        raise pa.ArrowInvalid(f"it claims {num_rows:,} rows in {num_bytes:,} bytes")
    buffer_bytes = _BUFFERS_BYTES // max(1, metadata.num_columns)
    file.seek(0)
    return pq.ParquetFile(
        file,
        metadata=metadata,
        buffer_size=min(4 * 2**20, max(64 * 1024, buffer_bytes)),
        pre_buffer=False,  # which would hold whole row groups
        read_dictionary=texts_of(metadata) if as_dictionaries else (),
    )
