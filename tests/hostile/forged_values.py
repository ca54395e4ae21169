"""Values that tokpipe writes nowhere, put into an output whose checksums are right."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.audit.outputs import parquet_edited
from tests.hostile.wrong_shapes import relist, resealed
from tokpipe.formats.checks import sha256

Change = Callable[[Path], None]


def _record(change: Callable[[dict[str, Any]], Any]) -> Change:
    return lambda out: resealed(out / "job.json", change)


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def _listed(kind: str, change: Callable[[bytes], bytes]) -> Change:
    """Change a shard, a side table or a part of the plan, and its hash where it is listed."""

    def forge(out: Path) -> None:
        for checkpoint in out.glob("manifest/*.checkpoint.*"):
            checkpoint.unlink()
        path = "job.json" if kind == "plan" else "manifest/00000000.json"
        resealed(out / path, lambda body: relist(body, out, kind, change))

    return forge


def _no_utf8(old: bytes) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        file, sink = pq.ParquetFile(io.BytesIO(data)), io.BytesIO()
        stored = (file.metadata.metadata or {}).items()
        own = {k.decode(): v.decode() for k, v in stored if k.startswith(b"tokpipe.")}
        options: dict[str, Any] = {"compression": "none", "use_dictionary": False}
        with pq.ParquetWriter(sink, file.schema_arrow, store_schema=not own, **options) as writer:
            writer.write_table(file.read())
            writer.add_key_value_metadata(own)
        assert old in sink.getvalue()
        return sink.getvalue().replace(old, b"\xff\xfe" + old[2:])

    return change


def _carried(value: int, stored: pa.DataType, kind: pa.DataType) -> Change:
    def change(table: pa.Table) -> pa.Table:
        return table.append_column("odd", pa.array([value] * len(table), stored).cast(kind))

    return _listed("side_table", lambda data: parquet_edited(data, change))


def _checkpoint(**values: Any) -> Change:
    def forge(out: Path) -> None:
        path = out / "manifest/00000004.checkpoint.parquet"
        table, sink = pq.read_table(path), io.BytesIO()
        for name, value in values.items():
            field, at = table.schema.field(name), table.schema.get_field_index(name)
            table = table.set_column(at, field, pa.array([value] * len(table), field.type))
        pq.write_table(table, sink)
        data = sink.getvalue()
        path.write_bytes(data)
        totals = {"shards_sha256": sha256(data), "shards_size_bytes": len(data)}
        resealed(path.with_suffix(".json"), lambda body: body.update(totals))

    return forge


def _row_ids(data: bytes) -> bytes:
    def change(table: pa.Table) -> pa.Table:
        return table.set_column(0, table.schema.field(0), pa.array(["../x"] * len(table)))

    return parquet_edited(data, change)


def _captions(data: bytes) -> bytes:
    def change(table: pa.Table) -> pa.Table:
        at = table.schema.get_field_index("caption")
        return table.set_column(at, "caption", pa.array(range(len(table))))

    return parquet_edited(data, change)


VALUES: dict[str, Change] = {
    "no encoder settings": _record(lambda body: body["settings"].pop("encode")),
    "a device of another type": _record(lambda body: body["settings"].update(encode=["cpu"])),
    "sources that are no mappings": _record(lambda body: body["job"].update(sources=[[]])),
    "a job without sources": _record(lambda body: body["job"].pop("sources")),
    "a plan without an id": _record(lambda body: body["plan"].pop("plan_id")),
    "deep settings": _record(lambda body: body["settings"].update(a=_nested(400))),
    "a deep job": _record(lambda body: body["job"].update(a=_nested(400))),
    "a URI in a shard that is not UTF-8": _listed("shard", _no_utf8(b"0.mp4")),
    "a URI in a side table that is not UTF-8": _listed("side_table", _no_utf8(b"0.mp4")),
    "a caption that is not UTF-8": _listed("side_table", _no_utf8(b"caption 0")),
    "a URI in the plan that is not UTF-8": _listed("plan", _no_utf8(b"0.mp4")),
    "row ids that are paths": _listed("plan", _row_ids),
    "captions in the plan that are numbers": _listed("plan", _captions),
    "a time after all years": _carried(2**62, pa.int64(), pa.timestamp("ms")),
    "a day after all years": _carried(2**31 - 1, pa.int32(), pa.date32()),
    "a shard elsewhere in a checkpoint": _checkpoint(shard="../../x.parquet"),
    "a side table elsewhere in a checkpoint": _checkpoint(side_table="/etc/passwd"),
    "a path as a hash in a checkpoint": _checkpoint(sha256="../x"),
}
