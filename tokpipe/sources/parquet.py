"""Parquet tables, read as a stream of bounded batches."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokpipe.config.job import StoreOptions
from tokpipe.errors import AccessDenied, ConfigError, NotFound
from tokpipe.sources.rows import MAX_COLUMNS, RawBatch, unique_names
from tokpipe.storage.ranged import Pin, open_ranged

_BATCH_ROWS = 65_536
_BATCH_BYTES = 32 * 2**20
_BUFFERS_BYTES = 64 * 2**20
"""Read-ahead of all columns together."""


@dataclass(frozen=True)
class ParquetFile:
    """A Parquet table. Columns keep their types; dictionaries are decoded."""

    uri: str
    options: StoreOptions
    pin: Pin = field(default_factory=Pin, compare=False)
    place: ClassVar[str] = "row"

    def columns(self) -> pa.Schema:
        with self._open() as file:
            return self._columns_of(file)

    def batches(self, columns: pa.Schema) -> Iterator[RawBatch]:
        with self._open() as file:
            own = self._columns_of(file).names
            chosen = [own.index(name) for name in columns.names]
            place = 1
            for batch in file.iter_batches(_batch_rows(file.metadata), use_threads=True):
                places = range(place, place + batch.num_rows)
                place += batch.num_rows
                problems: dict[int, str] = {}
                arrays = [
                    _plain(batch.column(i), field, problems)
                    for i, field in zip(chosen, columns, strict=True)
                ]
                plain = pa.RecordBatch.from_arrays(arrays, schema=columns)
                yield RawBatch(plain, places, problems)

    @contextlib.contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            with open_ranged(self.uri, self.options, 64 * 1024, self.pin) as file:
                metadata = pq.read_metadata(file)
                buffer_bytes = _BUFFERS_BYTES // max(1, metadata.num_columns)
                file.seek(0)
                yield pq.ParquetFile(
                    file,
                    metadata=metadata,
                    buffer_size=min(4 * 2**20, max(64 * 1024, buffer_bytes)),
                    pre_buffer=False,  # which would hold whole row groups
                )
        except (NotFound, AccessDenied) as error:
            raise ConfigError(str(error)) from error
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{self.uri}: cannot be read as Parquet ({error}). The clips after that point "
                "would silently be missing: write the table again, or set the source's format."
            ) from error

    def _columns_of(self, file: Any) -> pa.Schema:
        fields = list(file.schema_arrow)[: MAX_COLUMNS + 1]  # one too many is rejected
        names = unique_names([field.name for field in fields])
        types = [_plain_type(field.type) for field in fields]
        return pa.schema(list(zip(names, types, strict=True)))


def _batch_rows(metadata: Any) -> int:
    """Rows per batch: fewer where rows are wide."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    widest = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=1)
    return int(min(_BATCH_ROWS, max(1, _BATCH_BYTES // max(1, widest))))


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        return _plain_type(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind):
        return pa.string()  # a column of nulls is most often missing text
    return kind


def _plain(array: pa.Array, field: pa.Field, problems: dict[int, str]) -> pa.Array:
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if array.type != field.type:
        array = pc.cast(array, field.type)
    if not pa.types.is_string(field.type):
        return array
    try:
        array.validate(full=True)  # reading Parquet does not check that text is UTF-8
    except pa.ArrowInvalid:
        return _decode(array, field.name, problems)
    return array


def _decode(array: pa.Array, name: str, problems: dict[int, str]) -> pa.Array:
    """Return text with null where it is not UTF-8, noting a problem for each such row."""
    texts: list[str | None] = [None] * len(array)
    for i, value in enumerate(array.cast(pa.binary()).to_pylist()):
        try:
            texts[i] = None if value is None else value.decode("utf-8")
        except UnicodeDecodeError as error:
            problems[i] = f"has a {name} that is not valid UTF-8: {error.reason}"
    return pa.array(texts, pa.string())
