"""CSV and TSV, read so that a bad row does not affect other rows.

A quote that is never closed makes an ordinary reader swallow every line up to the next quote.
Here a malformed record loses only its first line; its later lines are read again.
"""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from tokpipe.config.job import StoreOptions
from tokpipe.errors import ConfigError
from tokpipe.sources.rows import check_num_columns, unique_names
from tokpipe.sources.table_files import RECORD_BYTES, RawBatch, open_text, read_line, text_batches

_RECORD_LINES = 1000
"""A quoted field that spans more lines counts as a quote that is never closed."""


@dataclass(frozen=True)
class DelimitedFile:
    """A UTF-8 CSV or TSV table with a header, plain or gzipped.

    Every value is text exactly as written, without type inference: ``007`` stays ``007``, and an
    empty field is an empty string. Quotes follow RFC 4180 (a quote within quotes is doubled). A
    TSV line whose quotes are invalid under that rule is split at its tabs instead.
    """

    uri: str
    options: StoreOptions
    delimiter: str
    place: ClassVar[str] = "line"

    def columns(self) -> pa.Schema:
        with open_text(self.uri, self.options) as file:
            return pa.schema([(name, pa.string()) for name in self._header(_Lines(file))])

    def batches(self, columns: pa.Schema) -> Iterator[RawBatch]:
        with open_text(self.uri, self.options) as file:
            lines = _Lines(file)
            names = self._header(lines)
            yield from text_batches(names, _records(lines, self.delimiter, len(names)))

    def _header(self, lines: _Lines) -> list[str]:
        try:
            fields = next(csv.reader(lines, delimiter=self.delimiter, strict=True), None)
        except UnicodeDecodeError as error:
            start = lines.record[0][:16] if lines.record else b""
            raise ConfigError(
                f"{self.uri}: is not UTF-8 text (it starts with {start!r}), so its columns are "
                "unknown. Save it as UTF-8, or set the source's format."
            ) from error
        except (csv.Error, _BrokenRecord) as error:
            raise ConfigError(
                f"{self.uri}: its first line is not a header ({error}), so its columns are "
                "unknown. Add a first line with the column names."
            ) from error
        if not fields:
            raise ConfigError(
                f"{self.uri}: is empty or starts with an empty line, so its columns are "
                "unknown. Add a first line with the column names."
            )
        check_num_columns(self.uri, len(fields))
        lines.end_record()
        return unique_names(fields)


class _BrokenRecord(Exception):
    """A record with an open quote, or far too long."""


class _Lines:
    """Physical lines for ``csv.reader``, remembering those of the current record."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self._put_back: deque[bytes] = deque()
        self.record: list[bytes] = []
        self.record_bytes = 0
        self.first_line = 1
        """Number of the record's first line."""

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._put_back.popleft() if self._put_back else read_line(self._file)
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

    def end_record(self) -> None:
        self.first_line += len(self.record)
        self.record = []
        self.record_bytes = 0

    def end_record_early(self) -> bytes:
        """End the record after its first line and return that line; the others are read again."""
        first, *others = self.record
        self._put_back.extendleft(reversed(others))
        self.record = [first]
        self.end_record()
        return first


def _records(
    lines: _Lines, delimiter: str, num_fields: int
) -> Iterator[tuple[int, Sequence[str] | str, int]]:
    """Yield (first line, fields or problem, bytes) for each record that is not blank."""
    while True:
        problem = None
        try:
            for fields in csv.reader(lines, delimiter=delimiter, strict=True):
                if len(fields) == num_fields:
                    yield lines.first_line, fields, lines.record_bytes
                elif fields:
                    problem = f"has {len(fields)} fields, the header has {num_fields}"
                    break
                lines.end_record()
        except csv.Error as error:
            problem = f"is malformed: {error}"
        except _BrokenRecord as error:
            problem = str(error)
        except UnicodeDecodeError as error:
            problem = f"is not valid UTF-8: {error.reason} at byte {error.start}"
        if problem is None:
            return
        line = lines.first_line
        first = lines.end_record_early()
        yield line, _split_literally(first, delimiter, num_fields) or problem, len(first)


def _split_literally(line: bytes, delimiter: str, num_fields: int) -> list[str] | None:
    """Split a TSV line whose quotes are part of the text: many tools write captions unquoted."""
    if delimiter != "\t" or len(line) > RECORD_BYTES:
        return None
    try:
        fields = line.decode("utf-8").rstrip("\r\n").split("\t")
    except UnicodeDecodeError:
        return None
    return fields if len(fields) == num_fields else None
