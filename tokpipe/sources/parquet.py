"""Parquet tables, read as a stream of bounded batches."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from tokpipe.errors import AccessDenied, ConfigError, NotFound
from tokpipe.formats.tables import UNREADABLE, check_text_bytes, stream_parquet
from tokpipe.sources.columns import find, is_media, plain, plain_type, within
from tokpipe.sources.rows import MAX_COLUMNS, RawBatch, unique_names
from tokpipe.storage.ranged import Pinned

_BATCH_ROWS = 65_536
_BATCH_BYTES = 32 * 2**20


@dataclass
class ParquetFile(Pinned):
    """A Parquet table. Columns keep their values, in their plain types."""

    place: ClassVar[str] = "row"

    def columns(self) -> pa.Schema:
        with self._open() as file:
            return self._columns_of(file)

    def batches(self, columns: pa.Schema) -> Iterator[RawBatch]:
        """Yield these columns; of bytes that are wanted as bool, whether there are any. Bytes of
        videos are not read: they can be most of a table."""
        with self._open() as file:
            inner = within(pa.struct(list(self._columns_of(file))))
            paths = [find(inner, field.name) for field in columns]
            is_set = {
                path: self._is_set(file, path)
                for field, path in zip(columns, paths, strict=True)
                if path and pa.types.is_binary(inner[path]) and pa.types.is_boolean(field.type)
            }
            media = ((*at, "bytes") for at in inner if is_media(inner[at]))
            skipped = set(map(".".join, (*is_set, *media)))
            leaves = [leaf for leaf in _leaves(file) if leaf not in skipped] if skipped else None
            start = 0
            for batch in file.iter_batches(_batch_rows(file, skipped), columns=leaves):
                check_text_bytes(batch.columns)
                whole = batch.rename_columns(unique_names(batch.schema.names)).to_struct_array()
                problems: dict[int, str] = {}
                arrays = []
                for field, path in zip(columns, paths, strict=True):
                    if path in is_set:
                        arrays.append(is_set[path].slice(start, batch.num_rows))
                    elif path and not pa.types.is_null(inner[path]):
                        array = plain(pc.struct_field(whole, path), field.type)
                        arrays.append(_checked(array, field, problems))
                    else:  # only other tables of the glob have it, or values in it
                        arrays.append(pa.nulls(batch.num_rows, field.type))
                places = range(start + 1, start + 1 + batch.num_rows)
                start += batch.num_rows
                yield RawBatch(pa.RecordBatch.from_arrays(arrays, schema=columns), places, problems)

    @contextlib.contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            with self.open(64 * 1024) as file:
                yield stream_parquet(file, as_dictionaries=True)
        except (NotFound, AccessDenied) as error:
            raise ConfigError(str(error)) from error
        except UNREADABLE as error:
            found = f"{self.uri}: cannot be read as Parquet ({error})"
            raise ConfigError(f"{found}. Write it again, or set format.") from error

    def _columns_of(self, file: Any) -> pa.Schema:
        fields = list(file.schema_arrow)[: MAX_COLUMNS + 1]  # one too many is rejected
        names = unique_names([field.name for field in fields])
        columns = []
        for name, one in zip(names, fields, strict=True):
            try:
                columns.append(pa.field(name, plain_type(one.type)))
            except ValueError as error:
                raise ConfigError(f"{self.uri}: column {name!r} {error}: rename one.") from error
        return pa.schema(columns)

    def _is_set(self, file: Any, path: tuple[str, ...]) -> pa.Array:
        """Return whether each row has a value, without reading those that statistics describe."""
        leaf, masks = ".".join(path), []
        at = _leaves(file).index(leaf)
        for index in range(file.num_row_groups):
            group = file.metadata.row_group(index)
            known = group.column(at).statistics
            num_nulls = known.null_count if known is not None and known.has_null_count else None
            if num_nulls in (0, group.num_rows):
                masks.append(pa.repeat(num_nulls == 0, group.num_rows))
                continue
            for batch in file.iter_batches(1, row_groups=[index], columns=[leaf]):
                masks.append(pc.struct_field(batch.to_struct_array(), path).is_valid())
        return pa.chunked_array(masks, pa.bool_()).combine_chunks()


def _leaves(file: Any) -> list[str]:
    return [file.schema.column(i).path for i in range(file.metadata.num_columns)]


def _batch_rows(file: Any, skipped: set[str]) -> int:
    groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    unread = [i for i, leaf in enumerate(_leaves(file)) if leaf in skipped]
    widths = (
        (group.total_byte_size - sum(group.column(i).total_uncompressed_size for i in unread))
        / max(1, group.num_rows)
        for group in groups
    )
    return int(min(_BATCH_ROWS, max(1, _BATCH_BYTES // max([1, *widths]))))


def _checked(array: pa.Array, field: pa.Field, problems: dict[int, str]) -> pa.Array:
    """Return values with null where text is not UTF-8, noting a problem for each such row."""
    try:
        array.validate(full=True)  # reading Parquet does not check that text is UTF-8
    except pa.ArrowInvalid:
        for i, value in enumerate(array):
            try:
                value.as_py()
            except UnicodeDecodeError as error:
                problems[i] = f"has a {field.name} that is not valid UTF-8: {error.reason}"
        is_good = pa.array([i not in problems for i in range(len(array))])
        return pc.if_else(is_good, array, pa.scalar(None, field.type))
    return array
