"""What reading one table file gives, whatever its format."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, cast

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
    """Some rows of one table, before it is known which column means what."""

    columns: pa.RecordBatch
    """All columns, by name, in any order; null throughout a broken row."""
    places: Sequence[int]
    """Line of a text table, or row of a Parquet file, each counted from 1."""
    problems: dict[int, str]
    """Broken rows, by position in this batch."""


class TableFile(Protocol):
    """One table of any format. A broken row is a problem; a broken table a ``ConfigError``."""

    place: str
    """What ``RawBatch.places`` counts: ``line`` or ``row``."""

    def columns(self) -> pa.Schema:
        """Return the table's columns."""

    def batches(self, columns: pa.Schema) -> Iterator[RawBatch]:
        """Yield the table's rows, as ``columns`` (those of all tables of a glob together)."""


class TextRows:
    """Collects rows of text into batches of bounded size."""

    def __init__(self, names: list[str]) -> None:
        self._schema = pa.schema([(name, pa.string()) for name in names])
        self._empty: list[str | None] = [None] * len(names)
        self._clear()

    def _clear(self) -> None:
        self._rows: list[list[str | None]] = []
        self._places: list[int] = []
        self._problems: dict[int, str] = {}
        self._num_bytes = 0

    def add(self, place: int, row: list[str | None], num_bytes: int) -> None:
        self._rows.append(row)
        self._places.append(place)
        self._num_bytes += num_bytes

    def add_problem(self, place: int, problem: str) -> None:
        self._problems[len(self._rows)] = problem
        self.add(place, self._empty, len(problem))

    @property
    def is_full(self) -> bool:
        return len(self._rows) >= _BATCH_ROWS or self._num_bytes >= _BATCH_BYTES

    def take(self) -> RawBatch:
        """Return what was collected, and start afresh."""
        columns = list(zip(*self._rows, strict=True)) or [()] * len(self._schema)
        arrays = [pa.array(column, pa.string()) for column in columns]
        batch = pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        raw = RawBatch(batch, self._places, self._problems)
        self._clear()
        return raw


@contextmanager
def open_text(uri: str, options: StoreOptions) -> Iterator[io.BufferedReader]:
    """Open a text table, unpacked if it is gzip, behind any byte order mark.

    Raises:
        ConfigError: it cannot be opened, or its gzip stream is cut or damaged. Half a table
            would silently be half a dataset.
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
            f"{uri}: its gzip stream is cut or damaged ({error}). Clips behind that place would "
            "be missing without a word: fetch or write the table again."
        ) from error
