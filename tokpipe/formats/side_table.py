"""Side tables: beside each shard, one row per clip with the columns carried from its source.

They are separate files, so captions and scores can be edited without rewriting codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from tokpipe.formats.checks import check_bytes, damaged
from tokpipe.types import EncodedClip

_OWN = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("source_uri", pa.string(), nullable=False),
        pa.field("plan_row", pa.int64(), nullable=False),
        pa.field("segment", pa.int32(), nullable=False),
        pa.field("n_segments", pa.int32(), nullable=False),
        pa.field("n_frames", pa.int32(), nullable=False),
        pa.field("n_chunks", pa.int32(), nullable=False),
        pa.field("fps", pa.float64(), nullable=False),
        pa.field("decoder", pa.string(), nullable=False),
        pa.field("marks", pa.list_(pa.field("item", pa.string(), nullable=False)), nullable=False),
        pa.field("damage", pa.string()),
        pa.field("start_pts_s", pa.float64(), nullable=False),
        pa.field("end_pts_s", pa.float64(), nullable=False),
    ]
)

# Side tables and plans written before clips had marks lack these.
_LATER = frozenset({"marks", "damage"})

OWN_COLUMNS: tuple[str, ...] = tuple(_OWN.names)
"""tokpipe's own columns; carried columns follow them."""


def build_side_table(clips: Sequence[EncodedClip], carried: pa.Table) -> bytes:
    """Return the side table of one shard, sorted by clip id as the shard is.

    Args:
        clips: the shard's clips, in any order.
        carried: the columns to carry, one row per clip in the order of ``clips``. Its schema is
            the same for all shards of a job. It must not contain OWN_COLUMNS, except that the
            columns added later are renamed: an older plan may carry columns of those names.
    """
    if carried.num_rows != len(clips):
        raise ValueError(f"{carried.num_rows} rows of carried columns for {len(clips)} clips")
    carried = _without_later_names(carried)
    if taken := set(OWN_COLUMNS) & set(carried.column_names):
        raise ValueError(f"carried columns {sorted(taken)} have names that tokpipe uses")
    order = sorted(range(len(clips)), key=lambda i: clips[i].ref.clip_id)
    clips = [clips[i] for i in order]
    own = pa.table(
        {
            "clip_id": [clip.ref.clip_id for clip in clips],
            "source_uri": [clip.ref.source_uri for clip in clips],
            "plan_row": [clip.ref.row for clip in clips],
            "segment": [clip.ref.segment for clip in clips],
            "n_segments": [clip.ref.num_segments for clip in clips],
            "n_frames": [len(clip.pts_s) for clip in clips],
            "n_chunks": [len(clip.chunks) for clip in clips],
            "fps": [clip.fps for clip in clips],
            "decoder": [clip.backend for clip in clips],
            "marks": [list(clip.marks) for clip in clips],
            "damage": [clip.damage for clip in clips],
            "start_pts_s": [float(clip.pts_s[0]) for clip in clips],
            "end_pts_s": [float(clip.pts_s[-1]) for clip in clips],
        },
        schema=_OWN,
    )
    carried = carried.take(pa.array(order, pa.int64()))
    schema = pa.schema([*_OWN, *carried.schema])
    table = pa.Table.from_arrays([*own.columns, *carried.columns], schema=schema)
    sink = pa.BufferOutputStream()
    # Stores the Arrow schema: carried columns may have types that Parquet lacks.
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def read_side_table(
    uri: str, data: bytes, *, size_bytes: int, sha256_hex: str, verify: bool = True
) -> pa.Table:
    """Return a side table, checked against its size and hash in the manifest.

    Raises:
        CorruptOutput: the bytes differ from the manifest, or are not a side table.
    """
    if verify:
        check_bytes(uri, data, size_bytes=size_bytes, sha256_hex=sha256_hex)
    try:
        table = pq.read_table(pa.BufferReader(data), page_checksum_verification=verify)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise damaged(uri, f"it does not open as a side table: {error}") from error
    before = [name for name in _OWN.names if name not in _LATER]
    if before == table.column_names[: len(before)]:
        return _with_marks(table)
    if table.column_names[: len(_OWN)] != _OWN.names:
        raise damaged(uri, f"its columns are {table.column_names}")
    return table


def _with_marks(table: pa.Table) -> pa.Table:
    """Add the later columns to an older side table: none of its clips is marked."""
    table = _without_later_names(table)
    num, at = table.num_rows, table.column_names.index("decoder") + 1
    marks = _OWN.field("marks")
    table = table.add_column(at, marks, pa.array([[]] * num, marks.type))
    return table.add_column(at + 1, _OWN.field("damage"), pa.nulls(num, pa.string()))


def _without_later_names(table: pa.Table) -> pa.Table:
    """Rename carried columns that have the name of a later column."""
    names: list[str] = []
    for name in table.column_names:
        other = name
        while other in _LATER or (other != name and other in table.column_names):
            other = f"src_{other}"
        names.append(other)
    return table.rename_columns(names)
