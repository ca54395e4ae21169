"""Makes jobs and outputs of any size that look like real ones, without a single video."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import tokpipe
from tokpipe.config import JobConfig, parse_job
from tokpipe.formats import job_record
from tokpipe.formats.job_record import JobRecord
from tokpipe.formats.manifest import (
    CommittedRows,
    ManifestEntry,
    ManifestState,
    append,
    checkpoint_spacing,
    write_checkpoint,
)
from tokpipe.formats.shard import TokenizerSpec
from tokpipe.identity import digest, fingerprint_settings
from tokpipe.plan import PlanReader, StoredPlan, write_plan
from tokpipe.stages.decode import decoder_versions
from tokpipe.storage import Store
from tokpipe.types import ClipRef, Receipt
from tokpipe.weights.read import read_weights

SHUFFLED_ROWS = 8192
"""Clips of so many rows are finished in any order: the manifest only nearly follows the plan."""
_TABLE_ROWS = 2**18
_WORDS = (
    *("a", "person", "dog", "car", "in", "on", "with", "the", "street", "kitchen", "river"),
    *("red", "small", "walks", "holds", "runs"),
)


def write_table(path: Path, num_rows: int) -> None:
    """Write a Parquet table of ``num_rows`` clips, with their URIs and captions."""
    rng = np.random.default_rng(0)
    schema = pa.schema([("uri", pa.string()), ("caption", pa.string())])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, num_rows, _TABLE_ROWS):
            rows = range(start, min(num_rows, start + _TABLE_ROWS))
            words = rng.integers(0, len(_WORDS), (len(rows), 10)).tolist()
            columns = [
                [f"s3://a-bucket/videos/{row // 1000:06}/{row:010}.mp4" for row in rows],
                [" ".join([_WORDS[word] for word in some]) for some in words],
            ]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=2**16)


def job_of_table(folder: Path) -> JobConfig:
    """The job of the table ``clips.parquet`` in ``folder``, which writes to ``out`` there."""
    settings = {
        "dataset": "synthetic",
        "sources": [{"kind": "table", "uri": "clips.parquet", "uri_column": "uri"}],
        "output": {"uri": "out"},
        "frames": {"size": [16, 24]},
        "encode": {"device": "cpu"},
        "tokenizer": {
            "encoder": {"ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "z_channels": 6},
            "quantizer": {"kind": "fsq", "levels": [8, 8, 8, 4, 2, 2]},
        },
    }
    return parse_job(json.dumps(settings), name="benchmark", root=folder, environ={})


@dataclass(frozen=True, slots=True)
class Begun:
    """An output that has its plan and its record, and lists nothing."""

    job: JobConfig
    store: Store
    plan: StoredPlan
    record: JobRecord


def begin_output(folder: Path, num_rows: int) -> Begun:
    """Write a table of ``num_rows`` clips, and plan and record of its job."""
    write_table(folder / "clips.parquet", num_rows)
    job = job_of_table(folder)
    store = Store(job.output.uri, job.storage)
    plan = write_plan(job, store, "driver")
    weights_hash = read_weights(job.tokenizer, job.storage).hash
    # As a run that resumes it will find them.
    decoders = decoder_versions(job.decode, job.has_pictures)
    settings = fingerprint_settings(job, weights_hash=weights_hash, device="cpu", decoders=decoders)
    record = job_record.write_once(
        store,
        JobRecord(
            tokpipe_version=tokpipe.__version__,
            created_at="2026-01-01T00:00:00+00:00",
            writer="driver",
            dataset=job.dataset,
            fingerprint=digest(settings),
            settings=settings,
            tokenizer=TokenizerSpec.of(job.tokenizer, job.chunking, weights_hash),
            num_rows=plan.num_rows,
            plan=asdict(plan),
            libraries={},
            job=job.model_dump(mode="json"),
        ),
    )
    return Begun(job, store, plan, record)


def write_output(
    folder: Path, num_clips: int, *, num_left: int = 0, clips_per_shard: int = 1000
) -> None:
    """Write a job's output of ``num_clips`` committed clips, without its shards.

    Its plan has ``num_left`` rows more, which are not done. Each entry lists one shard. Plan,
    record, manifest and checkpoints are written by the code that jobs use.
    """
    begun = begin_output(folder, num_clips + num_left)
    store, plan = begun.store, begun.plan
    state = ManifestState(CommittedRows(plan.num_rows))
    # It takes nearly all of the time, and the output is deleted.
    with mock.patch("os.fsync"):
        for clips in _finished(PlanReader(store, plan), num_clips, clips_per_shard):
            entry = ManifestEntry(
                state.next_seq, "driver", "now", (_receipt(state.next_seq, clips),)
            )
            written = append(store, entry)
            assert written is not None
            state.apply(written)
            if state.next_seq % checkpoint_spacing(state.next_seq) == 0:
                write_checkpoint(store, state)


def _finished(
    reader: PlanReader, num_clips: int, clips_per_shard: int
) -> Iterator[tuple[ClipRef, ...]]:
    """Clips of one shard after the other, of the plan's first ``num_clips`` rows."""
    rng = np.random.default_rng(0)
    waiting: list[ClipRef] = []
    for start in range(0, num_clips, SHUFFLED_ROWS):
        items = reader.items(np.arange(start, min(num_clips, start + SHUFFLED_ROWS)))
        shuffled = (items[at] for at in rng.permutation(len(items)))
        waiting += (ClipRef(one.row_id, one.row, 0, 1, one.source_uri) for one in shuffled)
        while len(waiting) >= clips_per_shard:
            yield tuple(waiting[:clips_per_shard])
            del waiting[:clips_per_shard]
    if waiting:
        yield tuple(waiting)


def _receipt(number: int, clips: tuple[ClipRef, ...]) -> Receipt:
    num = len(clips)
    return Receipt(
        shard=f"shards/s{number}.parquet",
        size_bytes=10**8,
        sha256="0" * 64,
        num_rows=num,
        num_codes=num * 480,
        num_frames=num * 17,
        grid=(2, 3),
        side_table=f"clips/s{number}.parquet",
        side_table_sha256="0" * 64,
        side_table_size_bytes=10**5,
        clips=clips,
    )
