"""The columns that every source gives, and the names that columns carried along may take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import pyarrow as pa

ROW_SCHEMA = pa.schema(
    [
        pa.field("source_uri", pa.string(), nullable=False),
        pa.field("archive_uri", pa.string()),
        pa.field("member_offset", pa.int64()),
        pa.field("member_size", pa.int64()),
        pa.field("start_s", pa.float64()),
        pa.field("end_s", pa.float64()),
        pa.field("problem", pa.string()),
    ]
)
"""What tokpipe needs to know of a clip; the meaning is that of ``WorkItem``'s fields.

A row with a problem is no clip. It is named by the place it was found at, such as
``videos.csv#line=17``, because its video may be unknown, or be a good clip of another row.
"""

MAX_COLUMNS = 1000
"""A wider table is refused: each column costs memory in every part of the plan and every shard."""

_OWN_NAMES = frozenset(
    {
        *ROW_SCHEMA.names,
        *("row", "row_id", "plan_row", "segment", "num_segments", "n_segments", "dataset"),
        *("clip_id", "chunk_index", "n_chunks", "start_pts_s", "end_pts_s", "frame_start"),
        *("n_frames", "n_pad_frames", "n_context_frames", "first_is_image", "fps", "decoder"),
        *("marks", "damage"),
        *("t", "h", "w", "codes", "codes_crc32"),
    }
)


class RowSource(Protocol):
    """One entry of a job's ``sources``, opened."""

    @property
    def label(self) -> str:
        """Names the source in messages: ``sources[0] (table videos.csv)``."""

    def carried(self) -> pa.Schema:
        """Return the columns that this source's rows carry beyond ``ROW_SCHEMA``.

        Raises:
            ConfigError: the source as a whole cannot be used.
        """

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield all rows, in an order that is the same every time, as ``ROW_SCHEMA`` + carried."""


def unique_names(names: Sequence[str]) -> list[str]:
    """Name each column: a missing name is ``column_<position>``, a repeated one ``name_2`` ..."""
    taken = set(names)
    unique: list[str] = []
    seen: set[str] = set()
    for position, name in enumerate(names, 1):
        candidate, number = name or f"column_{position}", 2
        while candidate in seen or (candidate != name and candidate in taken):
            candidate, number = f"{name or 'column'}_{number}", number + 1
        seen.add(candidate)
        unique.append(candidate)
    return unique


def carried_names(names: Sequence[str]) -> list[str]:
    """Names under which columns are carried: their own, or ``src_<name>`` if that is tokpipe's.

    DuckDB and others take ``FPS`` and ``fps`` for one column, so case makes no difference here.
    """
    taken = {name.lower() for name in names} | _OWN_NAMES
    chosen = []
    for name in names:
        new = name or "column"
        if not name or name.lower() in _OWN_NAMES:
            while new.lower() in taken:
                new = f"src_{new}"
            taken.add(new.lower())
        chosen.append(new)
    return chosen


def make_batch(
    columns: dict[str, Any], carried: Sequence[pa.Array], schema: pa.Schema
) -> pa.RecordBatch:
    """Assemble a batch from some of ``ROW_SCHEMA``'s columns (the others are null) and carried."""
    num_rows = len(columns["source_uri"])
    own = []
    for field in ROW_SCHEMA:
        values = columns.get(field.name)
        if values is None:
            own.append(pa.nulls(num_rows, field.type))
        elif isinstance(values, pa.Array):
            own.append(values)
        else:
            own.append(pa.array(values, field.type))
    return pa.RecordBatch.from_arrays([*own, *carried], schema=schema)


def row_schema(carried: pa.Schema) -> pa.Schema:
    """Return ``ROW_SCHEMA`` followed by the carried columns."""
    return pa.schema([*ROW_SCHEMA, *carried])
