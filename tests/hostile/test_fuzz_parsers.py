"""Parsers of files that others wrote: any bytes yield rows, or the documented error.

The bytes are random, or valid files with a little damage.
"""

import contextlib
import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.formats.formats_helpers import DictStore, clip_ref, encoded_clip, record, shard_metadata
from tests.formats.test_manifest_entry import ENTRY
from tests.hostile.tables import WHOLE, damage
from tests.sources.reading import Rows, read
from tokpipe.errors import ConfigError, CorruptOutput
from tokpipe.formats.job_record import JobRecord
from tokpipe.formats.layout import checkpoint_key
from tokpipe.formats.manifest import ManifestEntry
from tokpipe.formats.manifest.checkpoint import read_checkpoint, write_checkpoint
from tokpipe.formats.manifest.committed import CommittedRows
from tokpipe.formats.manifest.state import ManifestState
from tokpipe.formats.sealed_json import dump_lines, seal, unseal
from tokpipe.formats.shard import build_shard
from tokpipe.formats.shard_reader import ShardReader

fuzz = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
seeds = st.integers(0, 2**32)


def damaged(data: bytes) -> st.SearchStrategy[bytes]:
    return seeds.map(lambda seed: damage(data, random.Random(seed)))


def read_table(folder: Path, name: str, data: bytes) -> Rows:
    (folder / name).write_bytes(data)
    kind = "webdataset" if name.endswith(".tar") else "table"
    return read(kind, folder / name)


# A line of CSV made of pieces that matter to its reader.
delimited = st.lists(
    st.sampled_from(
        [b"url", b"name", b",", b"\t", b'"', b'""', b"\n", b"\r", b"\r\n", b"\0", b"\xff",
         b"\xef\xbb\xbf", b"/v.mp4", b"../v", b"\xed\xa0\x80", b" "]
    ),
    max_size=40,
).map(b"".join)  # fmt: skip


values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
objects = st.dictionaries(st.sampled_from(["url", "name", "", "\ud800", "url "]), values)
INPUTS: dict[str, st.SearchStrategy[bytes]] = {
    "t.csv": delimited.map(lambda rest: b"url,name\n" + rest),
    "t.tsv": delimited.map(lambda rest: b"url\tname\n" + rest),
    "t.csv.gz": st.nothing(),
    "t.jsonl": st.just(b'{"url": "\xed\xa0\x80"}\n{"url": "/v"}\n')
    | st.lists(objects, max_size=5).map(
        lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode()
    ),
    "t.parquet": st.nothing(),
    "t.tar": st.nothing(),
}


@pytest.mark.parametrize("name", INPUTS)
@given(data=st.data())
@fuzz
def test_any_bytes_of_a_table_yield_valid_rows_or_a_config_error(
    name: str, data: st.DataObject, tmp_path: Path
) -> None:
    drawn = data.draw(damaged(WHOLE[name]) | st.binary(max_size=300) | INPUTS[name])
    with contextlib.suppress(ConfigError):
        read_table(tmp_path, name, drawn)


@pytest.mark.parametrize("name", WHOLE)
def test_the_tables_damaged_here_are_valid_before(name: str, tmp_path: Path) -> None:
    rows = read_table(tmp_path, name, WHOLE[name])
    assert len(rows) == (9 if name.endswith(".tar") else 50)
    assert {row["problem"] for row in rows} == {None}


# Objects of an output: damaged, or with wrong contents under a valid checksum.


def resealed(valid: bytes) -> st.SearchStrategy[bytes]:
    """The object with another value somewhere in it, and a matching checksum."""

    def change(seed: int, value: Any) -> bytes:
        rng = random.Random(seed)
        body = unseal("mem://x", valid, newest_format=1)
        body["format"] = 1
        holder: Any = body
        while True:
            keys = list(holder) if isinstance(holder, dict) else range(len(holder))
            key = rng.choice(list(keys))
            if not isinstance(holder[key], (dict, list)) or not holder[key] or rng.random() < 0.3:
                break
            holder = holder[key]
        holder[key] = value
        return dump_lines(seal(body))

    finite = values.filter(lambda value: "\\ud" not in json.dumps(value))
    return st.builds(change, seeds, finite)


BOMBS = [b"[" * 20_000, b'{"format": ' + b"[" * 20_000, b'{"a":' * 20_000, b"9" * 10_000]


def changed_record(seed: int, value: Any) -> bytes:
    fields = json.loads(record().to_json())
    fields[random.Random(seed).choice(list(fields))] = value
    return json.dumps(fields).encode()


def checkpoint_store() -> DictStore:
    store = DictStore()
    state = ManifestState(CommittedRows(20))
    for row in (1, 5, 9):
        state.committed.add(clip_ref(row))
    state.committed.add(clip_ref(11, 0, 3))
    state.next_seq = 64
    assert write_checkpoint(store, state)
    return store


CHECKPOINT = checkpoint_store().objects[checkpoint_key(64)]
SHARD = build_shard([encoded_clip(0), encoded_clip(1)], shard_metadata())


def parse_checkpoint(data: bytes) -> None:
    store = checkpoint_store()
    store.objects[checkpoint_key(64)] = data
    read_checkpoint(store, 64, 20)


def parse_shard(data: bytes) -> None:
    reader = ShardReader("mem://x", data)
    for group in range(reader.num_row_groups):
        reader.read_row_group(group)


OBJECTS: dict[str, tuple[Callable[[bytes], object], bytes, st.SearchStrategy[bytes]]] = {
    "entry": (
        partial(ManifestEntry.from_json, "mem://x"), ENTRY.to_json(), resealed(ENTRY.to_json()),
    ),
    "record": (
        partial(JobRecord.from_json, "mem://x"), record().to_json(),
        st.builds(changed_record, seeds, values),
    ),
    "checkpoint": (parse_checkpoint, CHECKPOINT, resealed(CHECKPOINT)),
    "shard": (parse_shard, SHARD, st.nothing()),
}  # fmt: skip
"""For each object: its parser, valid bytes, and bytes with other contents."""


@pytest.mark.parametrize("name", OBJECTS)
@given(data=st.data())
@fuzz
def test_any_bytes_of_an_output_are_parsed_or_corrupt_output(
    name: str, data: st.DataObject
) -> None:
    parse, valid, others = OBJECTS[name]
    with contextlib.suppress(CorruptOutput):
        parse(data.draw(damaged(valid) | st.binary(max_size=300) | others))


@pytest.mark.parametrize("bomb", BOMBS, ids=range(len(BOMBS)))
@pytest.mark.parametrize("name", OBJECTS)
def test_deeply_nested_json_is_corrupt_output(name: str, bomb: bytes) -> None:
    with pytest.raises(CorruptOutput):
        OBJECTS[name][0](bomb)


@given(seed=seeds, value=st.binary(max_size=20) | st.integers().map(lambda n: str(n).encode()))
@fuzz
def test_a_footer_with_any_value_is_parsed_or_corrupt_output(seed: int, value: bytes) -> None:
    table = pq.read_table(pa.BufferReader(SHARD))
    footer = dict(pq.ParquetFile(pa.BufferReader(SHARD)).metadata.metadata)
    footer[random.Random(seed).choice(sorted(footer))] = value
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(footer), sink, store_schema=False)
    with contextlib.suppress(CorruptOutput):
        parse_shard(sink.getvalue().to_pybytes())
