"""Parsers of what others wrote: any bytes give rows, or the error that is documented.

Bytes are drawn in two ways: at random, and from sound files that were damaged a little.
"""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.formats.formats_helpers import DictStore, clip_ref, encoded_clip, shard_metadata
from tests.formats.test_job_record import record
from tests.formats.test_manifest_entry import ENTRY
from tests.hostile.tables import WHOLE, damage
from tokpipe.config.job import StoreOptions
from tokpipe.config.sources import TableSource, WebDatasetSource
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
from tokpipe.sources.open import open_source
from tokpipe.sources.rows import ROW_SCHEMA

OPTIONS = StoreOptions(deadline_s=5)
LIMIT_S = 10.0
"""For one small input; most take milliseconds."""

fuzz = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
seeds = st.integers(0, 2**32)


def damaged(data: bytes) -> st.SearchStrategy[bytes]:
    return seeds.map(lambda seed: damage(data, random.Random(seed)))


def any_of(name: str) -> st.SearchStrategy[bytes]:
    return damaged(WHOLE[name]) | st.binary(max_size=300)


def read_table(folder: Path, name: str, data: bytes) -> None:
    """Read a source as planning does: its rows are sound, or it is refused."""
    path = folder / name
    path.write_bytes(data)
    source: TableSource | WebDatasetSource = (
        WebDatasetSource(kind="webdataset", uri=str(path))
        if name.endswith(".tar")
        else TableSource(kind="table", uri=str(path), uri_column="url", allowed_prefixes=("/",))
    )
    started = time.monotonic()
    rows = open_source(0, source, OPTIONS)
    with contextlib.suppress(ConfigError):
        schema = pa.schema([*ROW_SCHEMA, *rows.carried()])
        for batch in rows.batches():
            batch.validate(full=True)
            assert batch.schema == schema
            assert batch.column("source_uri").null_count == 0
    assert time.monotonic() - started < LIMIT_S


# A line of CSV out of pieces that mean something to its reader.
delimited = st.lists(
    st.sampled_from(
        [b"url", b"name", b",", b"\t", b'"', b'""', b"\n", b"\r", b"\r\n", b"\0", b"\xff",
         b"\xef\xbb\xbf", b"/v.mp4", b"../v", b"\xed\xa0\x80", b" "]
    ),
    max_size=40,
).map(b"".join)  # fmt: skip


@given(data=any_of("t.csv") | delimited.map(lambda rest: b"url,name\n" + rest))
@fuzz
def test_any_bytes_called_csv_give_rows_or_a_config_error(data: bytes, tmp_path: Path) -> None:
    read_table(tmp_path, "t.csv", data)


@given(data=any_of("t.tsv") | delimited.map(lambda rest: b"url\tname\n" + rest))
@fuzz
def test_any_bytes_called_tsv_give_rows_or_a_config_error(data: bytes, tmp_path: Path) -> None:
    read_table(tmp_path, "t.tsv", data)


@given(data=any_of("t.csv.gz"))
@fuzz
def test_any_bytes_called_gzip_give_rows_or_a_config_error(data: bytes, tmp_path: Path) -> None:
    read_table(tmp_path, "t.csv.gz", data)


values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
objects = st.dictionaries(st.sampled_from(["url", "name", "", "\ud800", "url "]), values)


@given(data=any_of("t.jsonl") | st.lists(objects, max_size=5).map(
    lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode()))  # fmt: skip
@example(data=b'{"url": "\xed\xa0\x80"}\n{"url": "/v"}\n')
@fuzz
def test_any_bytes_called_jsonl_give_rows_or_a_config_error(data: bytes, tmp_path: Path) -> None:
    read_table(tmp_path, "t.jsonl", data)


@given(data=any_of("t.parquet"))
@fuzz
def test_any_bytes_called_parquet_give_rows_or_a_config_error(data: bytes, tmp_path: Path) -> None:
    read_table(tmp_path, "t.parquet", data)


@given(data=any_of("t.tar"))
@fuzz
def test_any_bytes_called_tar_give_rows_or_a_config_error(data: bytes, tmp_path: Path) -> None:
    read_table(tmp_path, "t.tar", data)


# Objects of an output: whole, damaged, and with a checksum that is right over a wrong content.


def resealed(sound: bytes) -> st.SearchStrategy[bytes]:
    """The object with another value somewhere in it, and a checksum that agrees."""

    def change(seed: int, value: Any) -> bytes:
        rng = random.Random(seed)
        body = unseal("mem://x", sound, newest_format=1)
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


def parses_or_is_corrupt(parse: Callable[[], object]) -> None:
    started = time.monotonic()
    with contextlib.suppress(CorruptOutput):
        parse()
    assert time.monotonic() - started < LIMIT_S


BOMBS = [b"[" * 20_000, b'{"format": ' + b"[" * 20_000, b'{"a":' * 20_000, b"9" * 10_000]


@given(data=damaged(ENTRY.to_json()) | st.binary(max_size=300) | resealed(ENTRY.to_json()))
@example(data=BOMBS[0])
@example(data=BOMBS[1])
@example(data=BOMBS[2])
@example(data=BOMBS[3])
@fuzz
def test_any_bytes_give_a_manifest_entry_or_corrupt_output(data: bytes) -> None:
    parses_or_is_corrupt(lambda: ManifestEntry.from_json("mem://x", data))


def changed_record(seed: int, value: Any) -> bytes:
    fields = json.loads(record().to_json())
    fields[random.Random(seed).choice(list(fields))] = value
    return json.dumps(fields).encode()


@given(data=damaged(record().to_json()) | st.binary(max_size=300) | st.builds(
    changed_record, seeds, values))  # fmt: skip
@example(data=BOMBS[0])
@example(data=BOMBS[1])
@example(data=BOMBS[2])
@example(data=BOMBS[3])
@fuzz
def test_any_bytes_give_a_job_record_or_corrupt_output(data: bytes) -> None:
    parses_or_is_corrupt(lambda: JobRecord.from_json("mem://x", data))


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


@given(data=damaged(CHECKPOINT) | st.binary(max_size=300) | resealed(CHECKPOINT))
@example(data=BOMBS[0])
@example(data=BOMBS[2])
@fuzz
def test_any_bytes_give_a_checkpoint_or_corrupt_output(data: bytes) -> None:
    store = checkpoint_store()
    store.objects[checkpoint_key(64)] = data
    parses_or_is_corrupt(lambda: read_checkpoint(store, 64, 20))


SHARD = build_shard([encoded_clip(0), encoded_clip(1)], shard_metadata())


def read_shard(data: bytes) -> None:
    reader = ShardReader("mem://x", data)
    for group in range(reader.num_row_groups):
        reader.read_row_group(group)


@given(data=damaged(SHARD) | st.binary(max_size=300))
@fuzz
def test_any_bytes_give_a_shard_or_corrupt_output(data: bytes) -> None:
    parses_or_is_corrupt(lambda: read_shard(data))


@given(seed=seeds, value=st.binary(max_size=20) | st.integers().map(lambda n: str(n).encode()))
@fuzz
def test_a_footer_with_any_value_is_parsed_or_corrupt_output(seed: int, value: bytes) -> None:
    table = pq.read_table(pa.BufferReader(SHARD))
    footer = dict(pq.ParquetFile(pa.BufferReader(SHARD)).metadata.metadata)
    footer[random.Random(seed).choice(sorted(footer))] = value
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(footer), sink, store_schema=False)
    parses_or_is_corrupt(lambda: read_shard(sink.getvalue().to_pybytes()))


@pytest.mark.parametrize("name", WHOLE)
def test_the_files_that_are_damaged_here_are_sound_at_first(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(WHOLE[name])
    source: TableSource | WebDatasetSource = (
        WebDatasetSource(kind="webdataset", uri=str(path))
        if name.endswith(".tar")
        else TableSource(kind="table", uri=str(path), uri_column="url", allowed_prefixes=("/",))
    )
    rows = [row for batch in open_source(0, source, OPTIONS).batches() for row in batch.to_pylist()]
    assert len(rows) == (9 if name.endswith(".tar") else 50)
    assert {row["problem"] for row in rows} == {None}
