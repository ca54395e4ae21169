"""Arrow tables as Parquet bytes, and the schemas of tokpipe's own columns."""

from collections.abc import Mapping
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokpipe.formats.checks import damaged, explained

_MAX_ROWS, _MAX_BYTES = 2**24, 2**31  # Of one of tokpipe's own tables, once decoded
_BUFFERS_BYTES = 64 * 2**20  # Read-ahead of all columns together


def required(columns: Mapping[str, pa.DataType]) -> pa.Schema:
    """Return a schema of columns that are never null."""
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


def to_parquet(table: pa.Table) -> bytes:
    """Return a table as Parquet, with page checksums.

    Stores the Arrow schema: carried columns may have types that Parquet lacks.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def check_bounds(metadata: Any) -> None:
    """Raise ArrowInvalid if a few bytes of Parquet claim to be gigabytes."""
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    sizes = [one.total_uncompressed_size for one in columns]  # to_dict() reads statistics too
    if not 0 <= metadata.num_rows <= _MAX_ROWS or sum(map(abs, sizes)) > _MAX_BYTES:
        raise pa.ArrowInvalid(f"it claims {metadata.num_rows:,} rows and {sum(sizes):,} bytes")


def from_parquet(
    uri: str, data: bytes, kind: str, *, verify: bool = True, columns: list[str] | None = None
) -> pa.Table:
    """Parse what ``to_parquet`` wrote; ``kind`` names it in the error."""
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=verify)
        check_bounds(file.metadata)
        names = file.schema_arrow.names
        if len(set(names)) < len(names) or not set(columns or ()) <= set(names):
            raise pa.ArrowInvalid(f"some of its columns {names[:50]} repeat, or some are missing")
        # In this thread alone: pyarrow's hold on to the bytes, and if one lets go of them while
        # Python exits, the process aborts.
        return file.read(columns, use_threads=False)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise damaged(uri, f"it does not open as a {kind}: {explained(error)}") from error


def check_texts(uri: str, table: pa.Table, **patterns: str) -> None:
    """Raise CorruptOutput unless all texts are UTF-8 and match the pattern of their column."""
    try:
        table.validate(full=True)
        for name in patterns.keys() & set(table.column_names):
            is_valid = pc.match_substring_regex(table.column(name), patterns[name])
            if not pc.all(is_valid, min_count=0).as_py():
                raise pa.ArrowInvalid(f"a {name} does not match {patterns[name]}")
    except pa.ArrowException as error:
        raise damaged(uri, f"its values are not what tokpipe writes: {explained(error)}") from error


def rows_of(uri: str, rows: pa.RecordBatch) -> list[dict[str, Any]]:
    """Return rows with columns of any type as Python values; CorruptOutput if it has none."""
    try:
        return list(rows.to_pylist())
    except (pa.ArrowException, OverflowError, ValueError) as error:
        raise damaged(uri, f"its values cannot be read: {explained(error)}") from error


def stream_parquet(file: BinaryIO) -> Any:
    """Open Parquet to be read as a stream of batches, in bounded memory."""
    metadata = pq.read_metadata(file)
    buffer_bytes = _BUFFERS_BYTES // max(1, metadata.num_columns)
    file.seek(0)
    return pq.ParquetFile(
        file,
        metadata=metadata,
        buffer_size=min(4 * 2**20, max(64 * 1024, buffer_bytes)),
        pre_buffer=False,  # which would hold whole row groups
    )
