"""Side tables: beside each shard, one row per clip with the columns carried from its source.

They are separate files, so captions and scores can be edited without rewriting codes.
"""

from collections.abc import Collection, Sequence
from typing import Any

import pyarrow as pa

from tokpipe.formats.checks import check_bytes, damaged
from tokpipe.formats.tables import from_parquet, required, to_parquet
from tokpipe.types import EncodedClip

_REQUIRED = required(
    {
        "clip_id": pa.string(),
        "source_uri": pa.string(),
        "plan_row": pa.int64(),
        "segment": pa.int32(),
        "n_segments": pa.int32(),
        "n_frames": pa.int32(),
        "n_chunks": pa.int32(),
        "fps": pa.float64(),
        "decoder": pa.string(),
        "encoder": pa.string(),
        "marks": pa.list_(pa.field("item", pa.string(), nullable=False)),
        "start_pts_s": pa.float64(),
        "end_pts_s": pa.float64(),
    }
)
_OWN = _REQUIRED.insert(11, pa.field("damage", pa.string()))

# Side tables and plans of earlier versions lack the last one, or all of these.
_LATER: dict[str, Any] = {"marks": [], "damage": None, "encoder": ""}

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
            "encoder": [clip.encoder for clip in clips],
            "marks": [list(clip.marks) for clip in clips],
            "damage": [clip.damage for clip in clips],
            "start_pts_s": [float(clip.pts_s[0]) for clip in clips],
            "end_pts_s": [float(clip.pts_s[-1]) for clip in clips],
        },
        schema=_OWN,
    )
    carried = carried.take(pa.array(order, pa.int64()))
    schema = pa.schema([*_OWN, *carried.schema])
    return to_parquet(pa.Table.from_arrays([*own.columns, *carried.columns], schema=schema))


def read_side_table(
    uri: str, data: bytes, *, size_bytes: int, sha256_hex: str, verify: bool = True
) -> pa.Table:
    """Return a side table, checked against its size and hash in the manifest."""
    if verify:
        check_bytes(uri, data, size_bytes=size_bytes, sha256_hex=sha256_hex)
    table = from_parquet(uri, data, "side table", verify=verify)
    for later in (["encoder"], list(_LATER)):
        before = [name for name in _OWN.names if name not in later]
        if before == table.column_names[: len(before)]:
            table = _without_later_names(table, later)
            for at, field in enumerate(_OWN):
                if field.name in later:
                    values = pa.array([_LATER[field.name]] * table.num_rows, field.type)
                    table = table.add_column(at, field, values)
            return _checked(uri, table)
    return _checked(uri, table)


def _checked(uri: str, table: pa.Table) -> pa.Table:
    if list(table.schema)[: len(_OWN)] != list(_OWN):
        raise damaged(uri, f"its columns are {table.column_names[:50]}, or of other types")
    return table


def _without_later_names(table: pa.Table, later: Collection[str] = tuple(_LATER)) -> pa.Table:
    """Rename carried columns that have the name of a later column."""
    names = {name: f"src_{name}" for name in table.column_names if name in later}
    for name, other in names.items():
        while other in table.column_names:
            other = f"src_{other}"
        names[name] = other
    return table.rename_columns(names)
