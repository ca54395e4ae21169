"""Tables of text (CSV, TSV, JSON Lines), read so that a bad row does not affect other rows.

A quote that is never closed makes an ordinary reader swallow every line up to the next quote.
Here a malformed record loses only its first line; its later lines are read again.
"""

import codecs
import csv
import gzip
import io
import json
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, cast

import pyarrow as pa

from tokpipe.config.job import StoreOptions
from tokpipe.errors import AccessDenied, ConfigError, NotFound
from tokpipe.sources.rows import MAX_COLUMNS, RawBatch, unique_names
from tokpipe.storage.ranged import Pin, open_ranged

RECORD_BYTES = 8 * 2**20
"""A longer row is a row with a problem."""

_RECORD_LINES = 1000
"""A quoted field that spans more lines counts as a quote that is never closed."""
_BATCH_ROWS = 16_384
_BATCH_BYTES = 16 * 2**20
_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

_Record = tuple[int, Sequence[str | None] | str, int]
"""Its first line, its values or its problem, and its size in bytes."""


@dataclass(frozen=True)
class DelimitedFile:
    """A UTF-8 CSV or TSV table with a header, plain or gzipped.

    Every value is text exactly as written, without type inference: ``007`` stays ``007``, and an
    empty field is an empty string. Quotes follow RFC 4180 (a quote within quotes is doubled). A
    TSV line whose quotes are invalid under that rule is split at its tabs instead.
    """

    uri: str
    options: StoreOptions
    delimiter: str = ","
    pin: Pin = field(default_factory=Pin, compare=False)
    place: ClassVar[str] = "line"

    def columns(self) -> pa.Schema:
        with _open_text(self.uri, self.options, self.pin) as file:
            return _text_schema(self._header(_Lines(file)))

    def batches(self, columns: pa.Schema) -> Iterator[RawBatch]:
        with _open_text(self.uri, self.options, self.pin) as file:
            lines = _Lines(file)
            names = self._header(lines)
            yield from _batches(names, _records(lines, self.delimiter, len(names)))

    def _header(self, lines: "_Lines") -> list[str]:
        found = "is empty or starts with an empty line"
        try:
            fields = next(csv.reader(lines, delimiter=self.delimiter, strict=True), None)
        except UnicodeDecodeError:
            fields, found = None, f"is not UTF-8 text (it starts with {lines.record[0][:16]!r})"
        except (csv.Error, _BrokenRecord) as error:
            fields, found = None, f"its first line is not a header ({error})"
        if not fields:
            raise ConfigError(
                f"{self.uri}: {found}, so its columns are unknown. Write a first line with the "
                "column names, in UTF-8, or set the source's format."
            )
        lines.end_record()
        return unique_names(fields[: MAX_COLUMNS + 1])  # one too many is rejected


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

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._put_back.popleft() if self._put_back else _read_line(self._file)
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


def _records(lines: _Lines, delimiter: str, num_fields: int) -> Iterator[_Record]:
    """Yield each record that is not blank."""
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


@dataclass(frozen=True)
class JsonLinesFile:
    """A JSONL table, plain or gzipped: one object per line, other values than text as JSON.

    A key may first appear in any line, so the whole table is read once to find the columns.
    """

    uri: str
    options: StoreOptions
    pin: Pin = field(default_factory=Pin, compare=False)
    place: ClassVar[str] = "line"

    def columns(self) -> pa.Schema:
        names: dict[str, None] = {}
        num_lines = 0
        for _, row, _ in self._rows():
            num_lines += 1
            if not isinstance(row, str):
                names |= dict.fromkeys(row)
            if len(names) > MAX_COLUMNS:
                break  # one too many is rejected
        if not names:
            raise ConfigError(
                f"{self.uri}: none of its {num_lines} lines is a JSON object with keys. Write "
                'one object per line, such as {"url": "..."}.'
            )
        return _text_schema(list(names)[: MAX_COLUMNS + 1])

    def batches(self, columns: pa.Schema) -> Iterator[RawBatch]:
        names = columns.names
        return _batches(
            names,
            (
                (line, row if isinstance(row, str) else [row.get(name) for name in names], size)
                for line, row, size in self._rows()
            ),
        )

    def _rows(self) -> Iterator[tuple[int, dict[str, str | None] | str, int]]:
        """Yield (line, its values or its problem, its bytes) for each line that is not blank."""
        with _open_text(self.uri, self.options, self.pin) as file:
            for number, line in enumerate(iter(lambda: _read_line(file), b""), 1):
                if len(line) > RECORD_BYTES:
                    yield number, f"is longer than {RECORD_BYTES} bytes", 0
                elif not line.isspace():
                    yield number, _parse(line), len(line)


def _parse(line: bytes) -> dict[str, str | None] | str:
    try:
        # From bytes, ``json`` guesses UTF-16 and accepts half a surrogate pair.
        value = json.loads(line.decode("utf-8"))
        if not isinstance(value, dict):
            return f"is not a JSON object but {type(value).__name__}"
        texts = {
            name: inner if inner is None or isinstance(inner, str) else _compact(inner)
            for name, inner in value.items()
        }
        if b"\\u" in line:  # an escape can spell half a surrogate pair, which UTF-8 cannot hold
            json.dumps(texts, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        return f"is not usable JSON: {error}"
    return texts


def _text_schema(names: Iterable[str]) -> pa.Schema:
    return pa.schema([(name, pa.string()) for name in names])


def _batches(names: list[str], records: Iterable[_Record]) -> Iterator[RawBatch]:
    """Collect records into batches of bounded size."""
    held: list[_Record] = []
    num_bytes = 0
    for record in records:
        held.append(record)
        num_bytes += record[2]
        if len(held) >= _BATCH_ROWS or num_bytes >= _BATCH_BYTES:
            yield _batch(names, held)
            held, num_bytes = [], 0
    yield _batch(names, held)


def _batch(names: list[str], records: list[_Record]) -> RawBatch:
    places, rows, _ = zip(*records, strict=True) if records else ((), (), ())
    problems = {i: row for i, row in enumerate(rows) if isinstance(row, str)}
    values = ([None] * len(names) if isinstance(row, str) else row for row in rows)
    columns = list(zip(*values, strict=True)) or [()] * len(names)
    arrays = [pa.array(column, pa.string()) for column in columns]
    batch = pa.RecordBatch.from_arrays(arrays, schema=_text_schema(names))
    return RawBatch(batch, places, problems)


def _read_line(file: io.BufferedReader) -> bytes:
    """Return the next line, empty at the end. The rest of a line beyond the limit is skipped."""
    line = rest = file.readline(RECORD_BYTES + 1)
    while len(rest) > RECORD_BYTES and not rest.endswith(b"\n"):
        rest = file.readline(RECORD_BYTES + 1)
    return line


@contextmanager
def _open_text(uri: str, options: StoreOptions, pin: Pin) -> Iterator[io.BufferedReader]:
    """Open a text table, decompressed if it is gzip, after any byte order mark.

    Raises:
        ConfigError: it cannot be opened, or its gzip stream is cut or damaged.
    """
    try:
        with open_ranged(uri, options, 8 * 2**20, pin) as file:
            plain = file
            if file.peek(2)[:2] == b"\x1f\x8b":
                plain = io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=file)), 2**20)
            if plain.peek(3)[:3] == codecs.BOM_UTF8:
                plain.read(3)
            yield plain
    except (NotFound, AccessDenied) as error:
        raise ConfigError(str(error)) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ConfigError(
            f"{uri}: its gzip stream is cut or damaged ({error}). The clips after that point "
            "would silently be missing: fetch or write the table again."
        ) from error
