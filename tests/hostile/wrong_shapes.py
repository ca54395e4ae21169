"""Changes of an output's records that keep their checksums right, and what verbs make of them."""

import contextlib
import copy
import io
import json
import random
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokpipe.cli import main
from tokpipe.formats.checks import sha256
from tokpipe.formats.sealed_json import CHECKSUM, seal

TABLES = ("plan", "shard", "side_table")
KINDS = ("record", "entry", "checkpoint", *TABLES, *(f"{name} bytes" for name in TABLES))

_VALUES: list[Any] = [
    *(None, True, -1, 0, 7, 10**13, 2**63, -(2**63) - 1, 10**30, 1.5, float("nan"), float("inf")),
    *("x", "", "../../../etc/passwd", "file:///etc/passwd", "a" * 5000, "1", "1e5"),
    *("\x1b[2J\r\n\u202e[red]", "\ud800", "inf", "http://[", "x://y", "\0"),
    *([], {}, [None], [[1, 2], [3]], {"a": {"b": 1}}, [[[[[[[[]]]]]]]]),
]
_TYPES = [
    *(pa.int64(), pa.string(), pa.binary(), pa.float64(), pa.list_(pa.int32()), pa.bool_()),
    *(pa.timestamp("us"), pa.struct([("a", pa.int8())]), pa.large_string(), pa.null()),
]


def run(*arguments: str) -> tuple[int, str]:
    """Return the exit code of a verb, and what it prints to standard error."""
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            code = main(arguments)
        except SystemExit as error:
            code = int(error.code or 0)
    return code, errors.getvalue()


def resealed(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a record and correct its checksum."""
    body = json.loads(path.read_bytes())
    del body[CHECKSUM]
    change(body)
    path.write_bytes(json.dumps(seal(body)).encode())


def relist(body: dict[str, Any], out: Path, kind: str, change: Callable[[bytes], bytes]) -> None:
    """Change a shard, a side table or a part of the plan, and its hash in the record ``body``."""
    prefix = "side_table_" if kind == "side_table" else ""
    listed = body["plan"]["parts"][0] if kind == "plan" else body["shards"][0]
    table = out / listed["key" if kind == "plan" else kind]
    data = change(table.read_bytes())
    table.write_bytes(data)
    listed |= {f"{prefix}sha256": sha256(data), f"{prefix}size_bytes": len(data)}


def spoil(out: Path, kind: str, seed: int) -> str:
    """Change one thing in an output; return what."""
    rng, said = random.Random(f"{kind} {seed}"), ""
    kind, *in_bytes = kind.split(" ")
    checkpoints = sorted(out.glob("manifest/*.checkpoint.*"))
    if kind not in ("record", "checkpoint", "plan"):
        for one in checkpoints:
            one.unlink()
    entries = [one for one in sorted(out.glob("manifest/*.json")) if one not in checkpoints]
    if kind in TABLES:
        entries = [one for one in entries if json.loads(one.read_bytes())["shards"]]
    path = checkpoints[0] if kind == "checkpoint" else rng.choice(entries)
    if kind in ("record", "plan"):
        path = out / "job.json"

    def change(body: dict[str, Any]) -> None:
        nonlocal said
        if kind not in TABLES:
            said = _changed(body, rng)
            return

        def damage(data: bytes) -> bytes:
            nonlocal said
            data, said = (_changed_bytes if in_bytes else _changed_table)(data, rng)
            return data

        relist(body, out, kind, damage)

    resealed(path, change)
    return f"{path.name}: {said}"


def _changed_bytes(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    if rng.random() < 0.1:
        end = rng.randrange(len(data))
        return data[:end], f"cut after {end} bytes"
    changed = bytearray(data)
    places = [rng.randrange(len(data)) for _ in range(rng.choice([1, 1, 2, 8]))]
    for place in places:
        changed[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, changed[place] ^ 1])
    return bytes(changed), f"bytes at {places}"


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if not isinstance(value, dict | list):
        return
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*place, key)
        yield from _places(inner, (*place, key))


def _changed(body: dict[str, Any], rng: random.Random) -> str:
    alike = defaultdict(list)  # items of one list, so that each key has its turn
    for place in _places(body):
        alike[str([key for key in place if isinstance(key, str)])].append(place)
    *parents, key = rng.choice(alike[rng.choice(sorted(alike))])
    holder: Any = body
    for parent in parents:
        holder = holder[parent]
    if rng.random() < 0.15:
        del holder[key]
        return f"without {[*parents, key]}"
    holder[key] = copy.deepcopy(rng.choice(_VALUES))
    return f"{[*parents, key]} = {holder[key]!r:.60}"


def _changed_table(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    file = pq.ParquetFile(io.BytesIO(data))
    table, stored = file.read(), file.metadata.metadata or {}
    own = {k.decode(): v.decode() for k, v in stored.items() if k.startswith(b"tokpipe.")}
    at = rng.randrange(table.num_columns)
    old, names = table.schema.field(at), table.column_names
    what = rng.choice(
        ["drop", "rename", "nullable", "type", "twice", "empty", "reverse", "shorter"]
    )
    match what:
        case "drop":
            table = table.remove_column(at)
        case "rename":
            table = table.rename_columns([*names[:at], "other", *names[at + 1 :]])
        case "nullable":
            table = table.set_column(at, old.with_nullable(not old.nullable), table.column(at))
        case "type":
            kind = rng.choice([one for one in _TYPES if one != old.type])
            table = table.set_column(at, pa.field(old.name, kind), pa.nulls(len(table), kind))
        case "twice":
            table = table.append_column(old, table.column(at))
        case "empty":
            table = table.slice(0, 0)
        case "reverse":
            table = table.select(names[::-1])
        case "shorter":
            table = table.slice(1)
    sink = io.BytesIO()
    try:
        with pq.ParquetWriter(sink, table.schema, store_schema=not own) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata(own)
    except pa.ArrowInvalid:  # it has nulls that its schema excludes
        return _changed_table(data, rng)
    return sink.getvalue(), f"column {old.name}: {what}"


def copied(valid: Path, out: Path) -> Path:
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(valid, out)
    return out
