"""What reading one table file produces, whatever its format."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Protocol, cast

import pyarrow as pa

from tokpipe.config.job import StoreOptions
from tokpipe.errors import AccessDenied, ConfigError, NotFound
from tokpipe.storage.ranged import open_ranged

RECORD_BYTES = 8 * 2**20
"""A longer row of a text table is a row with a problem."""

_BATCH_ROWS = 16_384
_BATCH_BYTES = 16 * 2**20
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class RawBatch:
    """Some rows of one table, before columns get their meaning."""

    columns: pa.RecordBatch
    """All columns, by name, in any order; a broken row is null throughout."""
    places: Sequence[int]
    """Line of a text table or row of a Parquet file, counted from 1."""
    problems: dict[int, str]
    """Broken rows, by position in this batch."""


class TableFile(Protocol):
    """A table of any format. A broken row is a problem, a broken table a ``ConfigError``."""

    place: ClassVar[str]
    """What ``RawBatch.places`` counts: ``line`` or ``row``."""

    def columns(self) -> pa.Schema:
        """Return the table's columns."""

    def batches(self, columns: pa.Schema) -> Iterator[RawBatch]:
        """Yield the table's rows with ``columns``, those of all tables of the glob together."""


def text_batches(
    names: list[str], rows: Iterable[tuple[int, Sequence[str | None] | str, int]]
) -> Iterator[RawBatch]:
    """Collect rows of text into batches of bounded size.

    Args:
        rows: (place, one value per name or the row's problem, size in bytes).
    """
    schema = pa.schema([(name, pa.string()) for name in names])
    values: list[Sequence[str | None]] = []
    places: list[int] = []
    problems: dict[int, str] = {}
    num_bytes = 0

    def batch() -> RawBatch:
        columns = list(zip(*values, strict=True)) or [()] * len(names)
        arrays = [pa.array(column, pa.string()) for column in columns]
        return RawBatch(pa.RecordBatch.from_arrays(arrays, schema=schema), places, problems)

    for place, row, size in rows:
        if isinstance(row, str):
            problems[len(values)] = row
            row = [None] * len(names)
        values.append(row)
        places.append(place)
        num_bytes += size
        if len(values) >= _BATCH_ROWS or num_bytes >= _BATCH_BYTES:
            yield batch()
            values, places, problems, num_bytes = [], [], {}, 0
    yield batch()


def read_line(file: io.BufferedReader) -> bytes:
    """Return the next line, empty at the end. The rest of a line beyond the limit is skipped."""
    line = rest = file.readline(RECORD_BYTES + 1)
    while len(rest) > RECORD_BYTES and not rest.endswith(b"\n"):
        rest = file.readline(RECORD_BYTES + 1)
    return line


@contextmanager
def open_text(uri: str, options: StoreOptions) -> Iterator[io.BufferedReader]:
    """Open a text table, decompressed if it is gzip, after any byte order mark.

    Raises:
        ConfigError: it cannot be opened, or its gzip stream is cut or damaged.
    """
    try:
        with open_ranged(uri, options, buffer_bytes=8 * 2**20) as file:
            plain = file
            if file.peek(2)[:2] == _GZIP_MAGIC:
                plain = io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=file)), 2**20)
            if plain.peek(3)[:3] == b"\xef\xbb\xbf":
                plain.read(3)
            yield plain
    except (NotFound, AccessDenied) as error:
        raise ConfigError(str(error)) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ConfigError(
            f"{uri}: its gzip stream is cut or damaged ({error}). The clips behind that place "
            "would silently be missing: fetch or write the table again."
        ) from error
