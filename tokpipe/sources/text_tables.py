"""Tables of text (CSV, TSV, JSON Lines), read so that a bad row does not affect other rows.

A quote that is never closed makes an ordinary reader swallow every line up to the next quote.
Here a malformed record loses only its first line; its later lines are read again.
"""

import codecs
import csv
import io
import json
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from tokpipe.errors import AccessDenied, ConfigError, NotFound
from tokpipe.sources.rows import MAX_COLUMNS, RawBatch, unique_names
from tokpipe.storage.ranged import Pinned

RECORD_BYTES = 8 * 2**20  # A longer row is a row with a problem

_RECORD_LINES = 1000  # A quoted field that spans more lines counts as a quote that is never closed
_BATCH_ROWS = 16_384
_BATCH_BYTES = 16 * 2**20
_PEEK_BYTES = 4096
_PIECE_CHARS = 2**20
_BETWEEN = re.compile(r"[\s,]*")
_ESCAPE = re.compile(r"(?i)\\(?:ud[89ab]..\\ud[c-f]..|(?P<half>ud[89a-f])|.)")
_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

_Record = tuple[int, Sequence[str | None] | str, int]  # First line, values or problem, bytes


@dataclass
class DelimitedFile(Pinned):
    """A UTF-8 CSV or TSV table with a header, plain or gzipped.

    Every value is text exactly as written: ``007`` stays ``007``, and an empty field is an empty
    string. Quotes follow RFC 4180; a TSV line that breaks its rules is split at its tabs instead.
    """

    delimiter: str = ","
    place: ClassVar[str] = "line"

    def columns(self) -> pa.Schema:
        with _open_text(self) as file:
            return _text_schema(self._header(file, []))

    def batches(self, columns: pa.Schema) -> Iterator[RawBatch]:
        with _open_text(self) as file:
            header: list[bytes] = []
            names = self._header(file, header)
            records = _records(file, self.delimiter, len(names), len(header) + 1)
            yield from _batches(names, records)

    def _header(self, file: io.BufferedReader, record: list[bytes]) -> list[str]:
        found = "is empty or starts with an empty line"
        lines = _lines(file, deque(), record)
        try:
            fields = next(csv.reader(lines, delimiter=self.delimiter, strict=True), None)
        except UnicodeDecodeError:
            fields, found = None, f"is not UTF-8 text (it starts with {record[0][:16]!r})"
        except (csv.Error, _BrokenRecord) as error:
            fields, found = None, f"its first line is not a header ({error})"
        if not fields:
            raise ConfigError(f"{self.uri}: {found}. Write a first line with the column names.")
        return unique_names(fields[: MAX_COLUMNS + 1])  # one too many is rejected


class _BrokenRecord(Exception):
    """A record with an open quote, or far too long."""


def _lines(file: io.BufferedReader, again: deque[bytes], record: list[bytes]) -> Iterator[str]:
    """Yield lines for ``csv.reader``, first those to read ``again``, adding them to ``record``."""
    size = 0
    while line := again.popleft() if again else _read_line(file):
        size = len(line) + (size if record else 0)
        record.append(line)
        if size > RECORD_BYTES:
            raise _BrokenRecord(f"is longer than {RECORD_BYTES} bytes")
        if len(record) > _RECORD_LINES:
            raise _BrokenRecord(f"a quote is not closed within {_RECORD_LINES} lines")
        yield line.decode("utf-8")
    if record:
        raise _BrokenRecord("a quote is never closed")


def _records(
    file: io.BufferedReader, delimiter: str, num_fields: int, line: int
) -> Iterator[_Record]:
    again, record = deque[bytes](), list[bytes]()
    problem = "not read yet"
    while problem:
        problem, lines = "", _lines(file, again, record)
        try:
            for fields in csv.reader(lines, delimiter=delimiter, strict=True):
                if len(fields) == num_fields:
                    yield line, fields, sum(map(len, record))
                elif fields:
                    problem = f"has {len(fields)} fields, the header has {num_fields}"
                    break
                line += len(record)
                record.clear()
        except csv.Error as error:
            problem = f"is malformed: {error}"
        except _BrokenRecord as error:
            problem = str(error)
        except UnicodeDecodeError as error:
            problem = f"is not valid UTF-8: {error.reason} at byte {error.start}"
        if problem:
            first, *others = record
            yield line, _split_literally(first, delimiter, num_fields) or problem, len(first)
            line += 1
            again.extendleft(reversed(others))
            record.clear()


def _split_literally(line: bytes, delimiter: str, num_fields: int) -> list[str] | None:
    """Split a TSV line whose quotes are part of the text: many tools write captions unquoted."""
    if delimiter == "\t" and len(line) <= RECORD_BYTES:
        with suppress(UnicodeDecodeError):
            fields = line.decode("utf-8").rstrip("\r\n").split("\t")
            return fields if len(fields) == num_fields else None
    return None


@dataclass
class JsonFile(Pinned):
    """A JSONL table, plain or compressed: one object per line; or one JSON array of objects. Values
    other than text are carried as JSON, with the digits that they have there. A key may first
    appear in any row, so the whole table is read once to find the columns."""

    used: Mapping[str, bool]
    """Columns, or fields ``a.b``, that make URIs and times: whether they may also be numbers."""
    place: str = "line"

    def columns(self) -> pa.Schema:
        names: dict[str, None] = {}
        num_rows = 0
        for _, row, _ in self._rows():
            num_rows += 1
            if not isinstance(row, str):
                names |= dict.fromkeys(row)
            if len(names) > MAX_COLUMNS:
                break  # one too many is rejected
        if not names:
            found = f"none of its {num_rows} {self.place}s is a JSON object with keys"
            raise ConfigError(f"{self.uri}: {found}. Write one object per line.")
        return _text_schema(list(names)[: MAX_COLUMNS + 1])

    def batches(self, columns: pa.Schema) -> Iterator[RawBatch]:
        names = columns.names
        values = ((place, self._values(row, names), size) for place, row, size in self._rows())
        return _batches(names, values)

    def _values(self, row: dict[str, Any] | str, names: list[str]) -> list[str | None] | str:
        if isinstance(row, str):
            return row
        try:
            for name, may_be_number in self.used.items():
                value = row[name] = _inner(row, name)
                is_right = type(value) is str or (may_be_number and type(value) is _Number)
                if value is not None and not is_right:
                    return f"has {_written(value)[:100]} as its {name}, which is not text"
            values = map(row.get, names)
            return [one if one is None or isinstance(one, str) else _written(one) for one in values]
        except RecursionError:  # such depths can be read, but not written
            return "is not usable JSON: it is nested too deeply"

    def _rows(self) -> Iterator[tuple[int, dict[str, Any] | str, int]]:
        """Yield (place, its values or its problem, its bytes) for each row that is not blank."""
        with _open_text(self) as file:
            start = b"".join(file.peek(_PEEK_BYTES)[:_PEEK_BYTES].split())
            if start[:2] in (b"[{", b"[]", b"["):
                self.place = "row"
                with io.TextIOWrapper(file, "utf-8") as text:
                    yield from _array(self.uri, text)
                return
            for number, line in enumerate(iter(lambda: _read_line(file), b""), 1):
                if len(line) > RECORD_BYTES:
                    yield number, f"is longer than {RECORD_BYTES} bytes", 0
                elif not line.isspace():
                    yield number, _parse(line), len(line)


class _Number(str):
    """A number, or NaN, as its digits: 1.10 or 12345678901234567890123 would not survive."""


_decoder = json.JSONDecoder(
    object_pairs_hook=tuple,  # a tuple of pairs: a key may be there twice
    parse_float=_Number,
    parse_int=_Number,
    parse_constant=_Number,
)


def _written(value: Any) -> str:
    if isinstance(value, _Number):
        return value
    if isinstance(value, tuple):
        return f"{{{','.join(f'{_compact(key)}:{_written(inner)}' for key, inner in value)}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    return _compact(value)


def _inner(row: Any, name: str) -> Any:
    """Return the value of a key, or of ``a.b`` within an object; a key with dots comes first."""
    for part in [name] if name in row else name.split("."):
        row = dict(row).get(part) if isinstance(row, dict | tuple) else None
    return row


def _parse(line: bytes) -> dict[str, Any] | str:
    try:
        # From bytes, ``json`` guesses UTF-16 and accepts half a surrogate pair.
        text = line.decode("utf-8")
        return _row(_decoder.decode(text), text)
    except (ValueError, RecursionError) as error:
        return f"is not usable JSON: {error}"


def _row(value: Any, text: str) -> dict[str, Any] | str:
    if not isinstance(value, tuple):
        return f"is not a JSON object but {text.strip()[:100]}"
    row = dict(value)
    if len(row) < len(value):
        keys = [key for key, _ in value]
        repeated = next(key for key in keys if keys.count(key) > 1)
        return f"has the key {repeated!r} twice, so it is not known which one counts"
    # An escape can spell half a surrogate pair, which UTF-8 cannot hold.
    if "\\u" in text and any(match["half"] for match in _ESCAPE.finditer(text)):
        return "is not usable JSON: half a surrogate pair"
    return row


def _array(uri: str, file: io.TextIOWrapper) -> Iterator[tuple[int, dict[str, Any] | str, int]]:
    """Yield the elements of a JSON array, holding one of them and a piece of text."""
    number, at = 0, 1
    try:
        text = file.read(_PIECE_CHARS).lstrip()
        while not text.startswith("]", at := _BETWEEN.match(text, at).end()):  # type: ignore[union-attr]
            try:
                value, end = _decoder.raw_decode(text, at)
            except (ValueError, RecursionError):
                if len(text) - at > RECORD_BYTES or not (more := file.read(_PIECE_CHARS)):
                    raise
                text, at = text[at:] + more, 0
                continue
            number += 1
            yield number, _row(value, text[at:end]), end - at
            at = end
        if (text[at + 1 :] + file.read(_PIECE_CHARS)).strip():
            raise ValueError("something follows the end of the array")
    except (ValueError, RecursionError) as error:
        found = f"{uri}: its JSON array is cut or damaged after element {number} ({error})"
        what = f"an element is longer than {RECORD_BYTES} characters"
        raise ConfigError(f"{found}, or {what}. Write the table again as JSONL.") from error


def _text_schema(names: list[str]) -> pa.Schema:
    return pa.schema([(name, pa.string()) for name in names])


def _batches(names: list[str], records: Iterable[_Record]) -> Iterator[RawBatch]:
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


_CODECS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd"}  # By a file's start


@contextmanager
def _open_text(table: Pinned) -> Iterator[io.BufferedReader]:
    """Open a text table, decompressed if it is compressed, after any byte order mark."""
    codec = None
    try:
        with table.open(8 * 2**20) as file:
            plain, start = file, file.peek(4)
            codec = next((_CODECS[magic] for magic in _CODECS if start.startswith(magic)), None)
            if codec is not None:
                # Python's own would take a damaged second stream for the end.
                stream: Any = pa.CompressedInputStream(pa.PythonFile(file, "r"), codec)
                plain = io.BufferedReader(stream, 2**20)
            if plain.peek(3)[:3] == codecs.BOM_UTF8:
                plain.read(3)
            yield plain
    except (NotFound, AccessDenied) as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        if codec is None:
            raise
        found = f"{table.uri}: its {codec} stream is cut or damaged ({error})"
        raise ConfigError(f"{found}: fetch or write the table again.") from error
