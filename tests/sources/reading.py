"""Reads a source as planning does, and makes tars."""

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import TypeAdapter

from tokpipe.config.job import StoreOptions
from tokpipe.config.sources import Source
from tokpipe.sources import open_sources
from tokpipe.sources.rows import ROW_SCHEMA, RowSource

OPTIONS = StoreOptions(deadline_s=10)
Rows = list[dict[str, Any]]
Members = Mapping[str, bytes] | Iterable[tuple[str, bytes]]


def opened(kind: str, uri: object, options: StoreOptions = OPTIONS, **config: Any) -> RowSource:
    if kind == "table":
        if "uri_template" not in config:
            config.setdefault("uri_column", "url")
        # Most tests are about something else, so videos may be anywhere.
        config.setdefault("allowed_prefixes", ("/", "s3://", "https://"))
    source: Any = TypeAdapter(Source).validate_python({"kind": kind, "uri": str(uri), **config})
    (rows,) = open_sources([source], options)
    return rows


def read(kind: str, uri: object, options: StoreOptions = OPTIONS, **config: Any) -> Rows:
    source = opened(kind, uri, options, **config)
    schema = pa.schema([*ROW_SCHEMA, *source.carried()])
    rows: Rows = []
    for batch in source.batches():
        batch.validate(full=True)
        assert batch.schema == schema
        assert batch.column("source_uri").null_count == 0
        rows += batch.to_pylist()
    return rows


def uris(rows: Rows) -> list[str]:
    return [row["source_uri"] for row in rows]


def problems(rows: Rows) -> dict[str, str]:
    return {row["source_uri"]: row["problem"] for row in rows if row["problem"] is not None}


def tar(members: Members, kind: int = tarfile.PAX_FORMAT) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=kind) as archive:
        for name, data in dict(members).items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return sink.getvalue()


def write(path: Path, text: str | bytes | bytearray) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path
