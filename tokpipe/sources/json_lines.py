"""JSON Lines: one object per line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from tokpipe.config.job import StoreOptions
from tokpipe.errors import ConfigError
from tokpipe.sources.rows import MAX_COLUMNS
from tokpipe.sources.table_files import RECORD_BYTES, RawBatch, open_text, read_line, text_batches

_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True)
class JsonLinesFile:
    """A JSONL table, plain or gzipped. Values other than text are carried as compact JSON.

    A key may first appear in any line, so the whole table is read once to find the columns.
    """

    uri: str
    options: StoreOptions
    place: ClassVar[str] = "line"

    def columns(self) -> pa.Schema:
        names: dict[str, None] = {}
        num_lines = 0
        for _, row, _ in self._rows():
            num_lines += 1
            if not isinstance(row, str):
                names.update(dict.fromkeys(row))
            if len(names) > MAX_COLUMNS:
                raise ConfigError(
                    f"{self.uri}: its objects have more than {MAX_COLUMNS} different keys. Put "
                    "what varies into one value, or drop keys that are not needed with the codes."
                )
        if not names:
            raise ConfigError(
                f"{self.uri}: none of its {num_lines} lines is a JSON object with keys. Write "
                'one object per line, such as {"url": "..."}.'
            )
        return pa.schema([(name, pa.string()) for name in names])

    def batches(self, columns: pa.Schema) -> Iterator[RawBatch]:
        names = columns.names
        return text_batches(
            names,
            (
                (line, row if isinstance(row, str) else [row.get(name) for name in names], size)
                for line, row, size in self._rows()
            ),
        )

    def _rows(self) -> Iterator[tuple[int, dict[str, str | None] | str, int]]:
        """Yield (line, its values or its problem, its bytes) for each line that is not blank."""
        with open_text(self.uri, self.options) as file:
            number = 0
            while line := read_line(file):
                number += 1
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
        texts = {name: _as_text(inner) for name, inner in value.items()}
        if b"\\u" in line:  # an escape can spell half a surrogate pair, which UTF-8 cannot hold
            json.dumps(texts, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        return f"is not usable JSON: {error}"
    return texts


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return _compact(value)
