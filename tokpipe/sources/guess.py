"""Guesses which columns of a table hold its videos and their spans."""

import os
import re
from pathlib import Path
from typing import Any

import pyarrow as pa

from tokpipe.config.sources import VIDEO_EXTENSIONS
from tokpipe.sources.spans import holds_seconds

_IS_VIDEO = re.compile(rf"(?is).*\.({'|'.join(VIDEO_EXTENSIONS)})(\?.*)?$")
_IS_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SPAN = re.compile(
    r"(?i)(?:clip_?|t_?)?(?:(start|begin|from)|end|stop|to)(?:_?(?:s|sec|seconds|time))?"
)
_NUM_VALUES = 100


def guess_columns(rows: pa.RecordBatch, folder: str) -> dict[str, Any]:
    """Return what a table source needs, from some rows of a table in ``folder``.

    Empty if no column looks like videos: names with their extensions, URIs, or paths that exist.
    """
    found: dict[str, Any] = {}
    best = 0
    for name, kind in zip(rows.schema.names, rows.schema.types, strict=True):
        if pa.types.is_string(kind):
            values = rows.column(name).slice(0, _NUM_VALUES).drop_null().to_pylist()
            score = sum(_score(value, folder) for value in values)
            if score > best:
                found, best = {"uri_column": name}, score
    for name, kind in zip(rows.schema.names, rows.schema.types, strict=True):
        match = _SPAN.fullmatch(name)
        if found and match and holds_seconds(kind):
            found.setdefault("start_column" if match[1] else "end_column", name)
    return found


def _score(value: str, folder: str) -> int:
    path = os.path.normpath(Path(folder, value))  # only looked at in the folder of its table
    exists = path.startswith(f"{folder}/") and os.path.isfile(path)  # noqa: PTH113
    return 2 * bool(_IS_VIDEO.match(value)) + bool(_IS_URI.match(value)) + 2 * exists
