"""Small inputs that stand for gigabytes or hours, opened in a process with little memory.

``python -m tests.hostile.bombs FOLDER`` prints the exit code and the error lines of each, as JSON.
"""

import io
import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.audit.outputs import finished
from tests.hostile.wrong_shapes import copied, resealed, run
from tokpipe.formats.checks import sha256

MEMORY_BYTES = 2**30  # Of address space, beyond what libraries have taken

JOB: dict[str, Any] = {
    "dataset": "demo",
    "sources": [{"kind": "files", "uri": "*.mp4"}],
    "output": {"uri": "out"},
    "frames": {"size": [64, 64]},
    "tokenizer": {"checkpoint": "builtin://fsq-4x8x8"},
}


def _aliases() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    return "\n".join(lines)


def _job(**source: Any) -> str:
    return json.dumps({**JOB, "sources": [{"kind": "files", **source}]})


def _table(template: str) -> str:
    return _job(kind="table", uri="clips.csv", uri_template=template)


JOBS: dict[str, str] = {
    "aliases": _aliases(),
    "nested YAML": "a: " + "[" * 50_000,
    "nested flow mappings": "{a: " * 50_000,
    "a long integer": "a: " + "9" * 10_000,
    "a long hexadecimal integer": "a: 0x" + "f" * 100_000,
    "a sexagesimal integer": "a: 1" + ":59" * 50_000,
    "a wrong tag": "a: !!bool perhaps",
    "too large": "a: [" + "[]," * 300_000 + "]",
    "braces within braces": _job(uri="{" + ",".join(["{1..99999}"] * 150) + "}.mp4"),
    "wide braces": _job(uri="{" + "0" * 90 + "1..99999}" + "x" * 9_999),
    "braces of long numbers": _job(uri="{1.." + "9" * 5_000 + "}.mp4"),
    "nested braces": _job(uri="{a," * 2_000 + "b" + "}" * 2_000),
    "many variables": _job(uri="${A:-" * 90_000),
    "a glob of many stars": _job(uri="*a" * 9 + "b.mp4"),
    "a wide format": _table("{id:1000000000d}.mp4"),
    "a precise format": _table("{id:.1000000000f}.mp4"),
    "a format within a format": _table("{id:{id}d}.mp4"),
    "a conversion": _table("{id!r}.mp4"),
    "an attribute": _table("{id.__class__}.mp4"),
    "an item": _table("{id[0]}.mp4"),
}


def _record(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda out: resealed(out / "job.json", change)


def _first_entry(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda out: resealed(out / "manifest/00000000.json", change)


def _many_values(out: Path) -> None:
    (out / "job.json").write_bytes(b'{"a": [' + b"[]," * 9_000_000 + b"[]]}")


def _many_rows() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"a": np.zeros(2**24 + 1, np.bool_)}), sink)
    return sink.getvalue()


def _rows_of(key: str, prefix: str) -> Callable[[Path], None]:
    def change(out: Path) -> None:
        data = _many_rows()
        for checkpoint in out.glob("manifest/*.checkpoint.*"):
            checkpoint.unlink()

        def list_it(entry: dict[str, Any]) -> None:
            shard = entry["shards"][0]
            (out / shard[key]).write_bytes(data)
            shard |= {f"{prefix}sha256": sha256(data), f"{prefix}size_bytes": len(data)}

        resealed(out / "manifest/00000000.json", list_it)

    return change


def _reopened(entry: dict[str, Any]) -> None:
    (one,) = entry["rejected"]
    ref = {**one["ref"], "segment": 5, "num_segments": 2**31 - 1}
    entry |= {"format": 2, "reopened": [{"ref": ref, "reason": one["reason"]}]}


OUTPUTS: dict[str, Callable[[Path], None]] = {
    "many plan rows": _record(lambda body: body.update(num_rows=10**13)),
    "more rows than any integer": _record(lambda body: body.update(num_rows=10**4000)),
    "many values": _many_values,
    "many rows in a shard": _rows_of("shard", ""),
    "many rows in a side table": _rows_of("side_table", "side_table_"),
    "a row of many segments": _first_entry(_reopened),
    "many chunks": _first_entry(lambda body: body["shards"][0].update(num_rows=10**13)),
}


def main(folder: Path) -> None:
    output = finished(folder / "valid")
    assert run("ls", output.store.uri)[0] == 0
    (folder / f"{'a' * 200}.mp4").touch()
    (folder / "clips.csv").write_text("id,b\n7,8\n")
    outs = {name: copied(Path(output.store.uri), folder / name) for name in OUTPUTS}
    for name, change in OUTPUTS.items():
        change(outs[name])
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, hard))
    verbs = {name: "inspect" if "shard" in name else "ls" for name in outs}
    found = {name: run(verbs[name], str(out)) for name, out in outs.items()}
    for name, text in JOBS.items():
        (folder / "job.yaml").write_text(text)
        found[name] = run("plan", str(folder / "job.yaml"))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
