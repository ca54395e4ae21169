"""Side tables: beside each shard, one row per clip with the columns carried from its source.

They are separate files, so captions and scores can be edited without rewriting codes.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import pyarrow as pa

from tokpipe.formats.checks import check_bytes, damaged
from tokpipe.formats.tables import check_texts, from_parquet, to_parquet
from tokpipe.types import EncodedClip

_COLUMNS: dict[str, tuple[pa.DataType, Callable[[EncodedClip], Any]]] = {
    "clip_id": (pa.string(), lambda clip: clip.ref.clip_id),
    "source_uri": (pa.string(), lambda clip: clip.ref.source_uri),
    "plan_row": (pa.int64(), lambda clip: clip.ref.row),
    "segment": (pa.int32(), lambda clip: clip.ref.segment),
    "n_segments": (pa.int32(), lambda clip: clip.ref.num_segments),
    "n_frames": (pa.int32(), lambda clip: len(clip.pts_s)),
    "n_chunks": (pa.int32(), lambda clip: len(clip.chunks)),
    "fps": (pa.float64(), lambda clip: clip.fps),
    "decoder": (pa.string(), lambda clip: clip.backend),
    "encoder": (pa.string(), lambda clip: clip.encoder),
    "marks": (pa.list_(pa.field("item", pa.string(), nullable=False)), lambda clip: clip.marks),
    "damage": (pa.string(), lambda clip: clip.damage),
    "source_sha256": (pa.string(), lambda clip: clip.source_sha256),
    "source_version": (pa.uint64(), lambda clip: clip.version),
    "start_pts_s": (pa.float64(), lambda clip: clip.pts_s[0]),
    "end_pts_s": (pa.float64(), lambda clip: clip.pts_s[-1]),
}
"""tokpipe's own columns, and where their values come from."""
_OWN = pa.schema(
    [
        pa.field(name, kind, nullable=name in ("damage", "source_version"))
        for name, (kind, _) in _COLUMNS.items()
    ]
)

# Side tables and plans of earlier versions lack the last one, two, three, or all of these.
_LATER: dict[str, Any] = {"marks": [], "damage": None, "encoder": "", "source_sha256": ""}
_LATER["source_version"] = None

OWN_COLUMNS: tuple[str, ...] = tuple(_OWN.names)  # Carried columns follow them


def build_side_table(clips: Sequence[EncodedClip], carried: pa.Table) -> bytes:
    """Return the side table of one shard, sorted by clip id as the shard is.

    ``carried`` has a row per clip, in the order of ``clips``, and the same schema for all shards of
    a job. It must not contain OWN_COLUMNS, except that the columns added later are renamed: an
    older plan may carry columns of those names.
    """
    if carried.num_rows != len(clips):
        raise ValueError(f"{carried.num_rows} rows of carried columns for {len(clips)} clips")
    carried = without_names(carried, _LATER)
    if taken := set(OWN_COLUMNS) & set(carried.column_names):
        raise ValueError(f"carried columns {sorted(taken)} have names that tokpipe uses")
    order = sorted(range(len(clips)), key=lambda i: clips[i].ref.clip_id)
    clips = [clips[i] for i in order]
    values = {name: [read(clip) for clip in clips] for name, (_, read) in _COLUMNS.items()}
    own = pa.table(values, schema=_OWN)
    carried = carried.take(pa.array(order, pa.int64()))
    schema = pa.schema([*_OWN, *carried.schema])
    return to_parquet(pa.Table.from_arrays([*own.columns, *carried.columns], schema=schema))


def read_side_table(
    uri: str, data: bytes, *, size_bytes: int, sha256_hex: str, columns: Sequence[str] | None = None
) -> pa.Table:
    """Return a side table or some of its columns, checked against its size and hash.

    Only these columns are decoded, unless it is of an earlier version.
    """
    check_bytes(uri, data, size_bytes=size_bytes, sha256_hex=sha256_hex)

    def chosen(names: list[str]) -> list[str]:
        is_new = names[: len(OWN_COLUMNS)] == list(OWN_COLUMNS)
        return list(columns) if columns is not None and is_new else names

    table = from_parquet(uri, data, "side table", columns=chosen)
    for later in (list(_LATER)[first:] for first in (4, 3, 2, 0)):
        before = [name for name in _OWN.names if name not in later]
        if before == table.column_names[: len(before)]:
            table = without_names(table, later)
            for at, field in enumerate(_OWN):
                if field.name in later:
                    values = pa.array([_LATER[field.name]] * table.num_rows, field.type)
                    table = table.add_column(at, field, values)
            break
    own = [name for name in OWN_COLUMNS if columns is None or name in columns]
    if columns is not None and set(columns) <= set(table.column_names):
        table = table.select([*own, *(name for name in columns if name not in own)])
    if list(table.schema)[: len(own)] != [_OWN.field(name) for name in own]:
        raise damaged(uri, f"its columns are {table.column_names[:50]}, or of other types")
    check_texts(uri, table.select(own))
    return table


def without_names(table: pa.Table, taken: Collection[str]) -> pa.Table:
    """Return a table whose columns with a name that is taken are called ``src_<name>``."""
    names = {name: f"src_{name}" for name in table.column_names if name in taken}
    for name, other in names.items():
        while other in table.column_names:
            other = f"src_{other}"
        names[name] = other
    return table.rename_columns(names)
