"""Small complete outputs, made by real parts without a cluster, and ways to damage them."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.formats.formats_helpers import encoded_clip
from tests.formats.formats_helpers import record as a_record
from tokpipe.config.job import JobConfig
from tokpipe.config.load import parse_job
from tokpipe.formats.job_record import JobRecord, write_once
from tokpipe.formats.layout import entry_key
from tokpipe.formats.manifest import (
    CommittedRows,
    ManifestEntry,
    ManifestState,
    append,
    write_checkpoint,
)
from tokpipe.formats.shard import TokenizerSpec
from tokpipe.identity import clip_id, digest, fingerprint_settings
from tokpipe.plan import PlanReader, write_plan
from tokpipe.stages.write import WriteStage
from tokpipe.storage import Store
from tokpipe.types import ClipRef, Receipt, Rejected

NUM_ROWS = 30
CUT_ROW, NUM_SEGMENTS = 3, 3
REJECTED_ROWS = (7, 19)
CLIPS_PER_SHARD = 4


@dataclass
class Made:
    """An output, and what it was made from."""

    store: Store
    job: JobConfig
    record: JobRecord
    write: WriteStage
    refs: list[ClipRef]


def made(
    root: Path,
    *,
    out: str = "out",
    dataset: str = "demo",
    streaming: bool = False,
    weights_hash: str = "random, seed 0",
) -> Made:
    """Start an output: plan and record, but no manifest yet."""
    root.mkdir(parents=True, exist_ok=True)
    lines = [f"s3://videos/{row}.mp4,caption {row}" for row in range(NUM_ROWS)]
    (root / "clips.csv").write_text("\n".join(["url,caption", *lines]) + "\n")
    settings: dict[str, Any] = {
        "dataset": dataset,
        "sources": [{"kind": "table", "uri": "clips.csv", "uri_column": "url"}],
        "output": {"uri": out},
        "frames": {"size": [16, 24]},
        "tokenizer": {
            "encoder": {"ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "z_channels": 6},
            "quantizer": {"kind": "fsq", "levels": [8, 8, 8, 4, 2, 2]},
            **({"norm": "frame"} if streaming else {}),
        },
        "chunking": {"policy": "streaming", "chunk_frames": 17} if streaming else {},
    }
    job = parse_job(json.dumps(settings), name="job.yaml", root=root, environ={})
    store = Store(job.output.uri, job.storage)
    plan = write_plan(job, store, "driver")
    kind = {"weights_hash": weights_hash, "device": "cpu"}
    codes = fingerprint_settings(job, **kind, decoders={"av": "18.1.0"})
    spec = TokenizerSpec.of(job.tokenizer, job.chunking, weights_hash)
    record = a_record(
        dataset=dataset,
        fingerprint=digest(codes),
        settings=codes,
        tokenizer=spec,
        num_rows=plan.num_rows,
        plan=asdict(plan),
        job=job.model_dump(mode="json"),
    )
    write_once(store, record)
    stage = WriteStage(job.output, job.storage, spec, record.fingerprint, plan)
    stage.setup()
    refs = []
    for item in PlanReader(store, plan).items(range(plan.num_rows)):
        total = NUM_SEGMENTS if item.row == CUT_ROW and not streaming else 1
        sampling = job.sampling
        for segment in range(total):
            name = clip_id(item.row_id, segment, total, sampling.max_clip_frames, sampling.fps)
            refs.append(ClipRef(name, item.row, segment, total, item.source_uri))
    return Made(store, job, record, stage, refs)


def finished(root: Path, *, num_shards: int | None = None, links: bool = False, **how: Any) -> Made:
    """Make an output with an entry per shard, two rejections, and a checkpoint in the middle.

    With ``links``, each entry holds the checksum of the one before; earlier versions wrote none.
    """
    output = made(root, **how)
    kept = [ref for ref in output.refs if ref.row not in REJECTED_ROWS]
    others = [ref for ref in output.refs if ref.row in REJECTED_ROWS]
    rejected = [Rejected(ref, "decode", "no_video", "it holds no video") for ref in others]
    state = ManifestState(CommittedRows(output.record.num_rows))
    groups = [kept[at : at + CLIPS_PER_SHARD] for at in range(0, len(kept), CLIPS_PER_SHARD)]
    for seq, group in enumerate(groups[:num_shards]):
        receipt = put(output, f"shard{seq}", group)
        rejections = tuple(rejected[seq : seq + 1])
        time, previous = f"2026-01-01T00:{seq:02}:00+00:00", state.tail.sha256 if links else None
        entry = ManifestEntry(seq, "driver", time, (receipt,), rejections, previous=previous)
        appended = append(output.store, entry)
        assert appended is not None
        state.apply(appended)
        if seq == 3:
            assert write_checkpoint(output.store, state)
    return output


def put(output: Made, name: str, refs: Sequence[ClipRef], seed: int = 0) -> Receipt:
    """Store a shard of these clips and its side table, as a write actor does."""
    clips = [encoded_clip(ref.row, [17] * (1 + ref.row % 3), seed=seed) for ref in refs]
    clips = [replace(clip, ref=ref) for clip, ref in zip(clips, refs, strict=True)]
    return output.write.process(name, clips)


LEFTOVERS = {
    *("shards/of-a-killed-worker.parquet", "clips/of-a-killed-worker.parquet"),
    *("plan/other-driver/00000.parquet", "probe/abc"),
}


def leave(output: Made) -> None:
    """Store leftovers of every kind."""
    put(output, "of-a-killed-worker", output.refs[:2])
    output.store.put("plan/other-driver/00000.parquet", b"123")
    output.store.put("probe/abc", b"first")


def entry_of(store: Store, seq: int) -> ManifestEntry:
    key = entry_key(seq)
    return ManifestEntry.from_json(store.uri_of(key), store.get(key))


def edit(store: Store, seq: int, change: Callable[[ManifestEntry], ManifestEntry]) -> None:
    """Change an entry and seal it again, so that its checksum is right."""
    store.put(entry_key(seq), change(entry_of(store, seq)).to_json())


def parquet_edited(data: bytes, change: Callable[[Any], Any]) -> bytes:
    """A Parquet file with its table changed and its key-value metadata kept."""
    file = pq.ParquetFile(io.BytesIO(data))
    table = change(file.read())
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, table.schema, store_schema=False) as writer:
        writer.write_table(table)
        metadata = (file.metadata.metadata or {}).items()
        own = {k.decode(): v.decode() for k, v in metadata if k.startswith(b"tokpipe.")}
        writer.add_key_value_metadata(own)
    return sink.getvalue()
