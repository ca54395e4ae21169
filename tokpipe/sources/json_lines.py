"""JSON Lines: one object per line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from tokpipe.config.job import StoreOptions
from tokpipe.errors import ConfigError
from tokpipe.sources.rows import MAX_COLUMNS
from tokpipe.sources.table_files import RECORD_BYTES, RawBatch, TextRows, open_text


class JsonLinesFile:
    """One JSONL table, ``.gz`` or plain. A value that is no text is carried as compact JSON.

    Keys may first appear in any line, so the columns are known after reading the table once.
    """

    place = "line"

    def __init__(self, uri: str, options: StoreOptions) -> None:
        self._uri = uri
        self._options = options

    def columns(self) -> pa.Schema:
        names: dict[str, None] = {}
        num_lines = 0
        for _, _, row in self._rows():
            num_lines += 1
            if not isinstance(row, str):
                names.update(dict.fromkeys(row))
            if len(names) > MAX_COLUMNS:
                raise ConfigError(
                    f"{self._uri}: its objects have more than {MAX_COLUMNS} different keys. Put "
                    "what varies into one value, or drop what nobody needs beside the codes."
                )
        if not names:
            raise ConfigError(
                f"{self._uri}: none of its {num_lines} lines is a JSON object with keys. Write "
                'one object per line, such as {"url": "..."}.'
            )
        return pa.schema([(name, pa.string()) for name in names])

    def batches(self, columns: pa.Schema) -> Iterator[RawBatch]:
        rows = TextRows(columns.names)
        for line, num_bytes, row in self._rows():
            if isinstance(row, str):
                rows.add_problem(line, row)
            else:
                rows.add(line, [row.get(name) for name in columns.names], num_bytes)
            if rows.is_full:
                yield rows.take()
        yield rows.take()

    def _rows(self) -> Iterator[tuple[int, int, dict[str, str | None] | str]]:
        """Yield (line, its bytes, texts or what is wrong) for each line that is not blank."""
        with open_text(self._uri, self._options) as file:
            number = 0
            while line := file.readline(RECORD_BYTES + 1):
                number += 1
                if len(line) > RECORD_BYTES:
                    rest = line
                    while len(rest) > RECORD_BYTES and not rest.endswith(b"\n"):
                        rest = file.readline(RECORD_BYTES + 1)
                    yield number, 0, f"is longer than {RECORD_BYTES} bytes"
                elif not line.isspace():
                    yield number, len(line), _parse(line)


def _parse(line: bytes) -> dict[str, str | None] | str:
    try:
        # As text: given bytes, ``json`` guesses at UTF-16 and lets half a surrogate pair through.
        value = json.loads(line.decode("utf-8"))
        if not isinstance(value, dict):
            return f"is no JSON object but {type(value).__name__}"
        texts = {name: _as_text(inner) for name, inner in value.items()}
        if b"\\u" in line:  # JSON can spell half a surrogate pair, which UTF-8 cannot hold
            json.dumps(texts, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        return f"is no usable JSON: {error}"
    return texts


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
