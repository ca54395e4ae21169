"""CSV and TSV, read so that one bad row costs one row.

A quote that is never closed makes an ordinary reader swallow every line up to the next quote.
Here a record that turns out malformed gives back its later lines, and only its first is lost.
"""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Iterator

import pyarrow as pa

from tokpipe.config.job import StoreOptions
from tokpipe.errors import ConfigError
from tokpipe.sources.rows import MAX_COLUMNS, unique_names
from tokpipe.sources.table_files import RECORD_BYTES, RawBatch, TextRows, open_text

_RECORD_LINES = 1000
"""A quoted field that spans more lines is taken for a quote that is never closed."""


class DelimitedFile:
    """One CSV or TSV table, ``.gz`` or plain, UTF-8, with a header.

    Every value is text exactly as written: no guessing of types, so ``007`` stays ``007``, and
    an empty field is an empty text. Quotes follow RFC 4180 (a quote within quotes is doubled).
    In a TSV, a line whose quotes make no sense under that rule is split at its tabs instead.
    """

    place = "line"

    def __init__(self, uri: str, options: StoreOptions, delimiter: str) -> None:
        self._uri = uri
        self._options = options
        self._delimiter = delimiter

    def columns(self) -> pa.Schema:
        with open_text(self._uri, self._options) as file:
            return pa.schema([(name, pa.string()) for name in self._header(_Lines(file))])

    def batches(self, columns: pa.Schema) -> Iterator[RawBatch]:
        with open_text(self._uri, self._options) as file:
            lines = _Lines(file)
            names = self._header(lines)
            rows = TextRows(names)
            for line, fields in _records(lines, self._delimiter, len(names)):
                if isinstance(fields, str):
                    rows.add_problem(line, fields)
                else:
                    rows.add(line, fields, lines.record_bytes)  # type: ignore[arg-type]
                if rows.is_full:
                    yield rows.take()
            yield rows.take()

    def _header(self, lines: _Lines) -> list[str]:
        try:
            fields = next(csv.reader(lines, delimiter=self._delimiter, strict=True), None)
        except UnicodeDecodeError as error:
            start = lines.record[0][:16] if lines.record else b""
            raise ConfigError(
                f"{self._uri}: is no UTF-8 text (it starts with {start!r}). Its columns cannot "
                "be known: save it as UTF-8, or set the source's format to what it is."
            ) from error
        except (csv.Error, _BrokenRecord) as error:
            raise ConfigError(
                f"{self._uri}: its first line is no header ({error}). Its columns cannot be "
                "known: give it a first line with the columns' names."
            ) from error
        if not fields:
            raise ConfigError(
                f"{self._uri}: starts with an empty line or is empty. Its columns cannot be "
                "known: give it a first line with the columns' names."
            )
        if len(fields) > MAX_COLUMNS:
            raise ConfigError(
                f"{self._uri}: has {len(fields)} columns, and {MAX_COLUMNS} is the most. Drop "
                "those that nobody needs beside the codes."
            )
        lines.mark()
        return unique_names(fields)


class _BrokenRecord(Exception):
    """A record that cannot end well: an open quote, or far too long."""


class _Lines:
    """Physical lines for ``csv.reader``, remembering those of the record being read."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self._given_back: deque[bytes] = deque()
        self.record: list[bytes] = []
        self.record_bytes = 0
        self.first_line = 1
        """Number of the record's first line."""

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._given_back.popleft() if self._given_back else self._read_line()
        if not line:
            if self.record:
                raise _BrokenRecord("a quote is never closed")
            raise StopIteration
        self.record.append(line)
        self.record_bytes += len(line)
        if self.record_bytes > RECORD_BYTES:
            raise _BrokenRecord(f"is longer than {RECORD_BYTES} bytes")
        if len(self.record) > _RECORD_LINES:
            raise _BrokenRecord(f"a quote is not closed within {_RECORD_LINES} lines")
        return line.decode("utf-8")

    def mark(self) -> None:
        """Say that the record is complete."""
        self.first_line += len(self.record)
        self.record = []
        self.record_bytes = 0

    def give_back(self) -> bytes:
        """End the record after its first line, which is returned; the others are read again."""
        first, *others = self.record
        self._given_back.extendleft(reversed(others))
        self.record = [first]
        self.mark()
        return first

    def _read_line(self) -> bytes:
        line = self._file.readline(RECORD_BYTES + 1)
        rest = line
        while len(rest) > RECORD_BYTES and not rest.endswith(b"\n"):
            rest = self._file.readline(RECORD_BYTES + 1)  # drop the rest of a monstrous line
        return line


def _records(
    lines: _Lines, delimiter: str, num_fields: int
) -> Iterator[tuple[int, list[str] | str]]:
    """Yield (first line, fields, or what is wrong) per record; blank lines are none."""
    while True:
        problem = None
        try:
            for fields in csv.reader(lines, delimiter=delimiter, strict=True):
                if len(fields) == num_fields:
                    yield lines.first_line, fields
                elif fields:
                    problem = f"has {len(fields)} fields, the header has {num_fields}"
                    break
                lines.mark()
        except csv.Error as error:
            problem = f"is malformed: {error}"
        except _BrokenRecord as error:
            problem = str(error)
        except UnicodeDecodeError as error:
            problem = f"is not valid UTF-8: {error.reason} at byte {error.start}"
        if problem is None:
            return
        line = lines.first_line
        first = lines.give_back()
        yield line, _split_literally(first, delimiter, num_fields) or problem


def _split_literally(line: bytes, delimiter: str, num_fields: int) -> list[str] | None:
    """Read a TSV line whose quotes are no quoting: many tools write captions as they are."""
    if delimiter != "\t" or len(line) > RECORD_BYTES:
        return None
    try:
        fields = line.decode("utf-8").rstrip("\r\n").split("\t")
    except UnicodeDecodeError:
        return None
    return fields if len(fields) == num_fields else None
