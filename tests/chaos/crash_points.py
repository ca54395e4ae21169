"""A store that ends its process at the Nth call, and what a driver does with a store."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from tests.end_to_end.jobs import Table
from tests.formats.formats_helpers import Crash, encoded_clip, shard_metadata
from tokpipe.config import JobConfig, parse_job
from tokpipe.errors import NotFound
from tokpipe.formats import job_record
from tokpipe.formats.job_record import JobRecord
from tokpipe.formats.manifest import iter_entries, load_state
from tokpipe.identity.ids import clip_id
from tokpipe.plan import PlanReader, StoredPlan, write_plan
from tokpipe.reader import open_output
from tokpipe.runtime.commit import claim_output
from tokpipe.runtime.feed import Feed
from tokpipe.stages.write import WriteStage
from tokpipe.storage import Store, open_store
from tokpipe.storage.store import StoredObject
from tokpipe.types import ClipRef, EncodedClip, Rejected, WorkItem

Side = Literal["before", "after"]
"""Whether a process dies before its call takes effect or after it: the answer is lost then."""

NUM_ROWS = 9
ROWS_PER_SHARD = 2
CHECKPOINT_EVERY = 2
REJECTED_EVERY = 4
"""Every fourth row is no good video."""


class CrashingStore:
    """A store that raises ``Crash`` at call ``crash_at`` (from 0), before or after its effect."""

    def __init__(self, store: Store, crash_at: int | None = None, side: Side = "before") -> None:
        self._store = store
        self._crash_at = crash_at
        self._side = side
        self.calls: list[str] = []
        """Every call so far, as ``method key``."""
        self.is_dead = False

    def _call(self, method: str, key: str, *arguments: Any) -> Any:
        if self.is_dead:
            raise Crash("the dead make no calls, not even to clean up")
        self.is_dead = len(self.calls) == self._crash_at
        self.calls.append(f"{method} {key}")
        if self.is_dead and self._side == "before":
            raise Crash(self.calls[-1])
        answer = getattr(self._store, method)(key, *arguments)
        if self.is_dead:
            raise Crash(self.calls[-1])
        return answer

    @property
    def uri(self) -> str:
        return self._store.uri

    def uri_of(self, key: str) -> str:
        return self._store.uri_of(key)

    def get(self, key: str) -> bytes:
        return bytes(self._call("get", key))

    def get_range(self, key: str, start: int, end: int) -> bytes:
        return bytes(self._call("get_range", key, start, end))

    def put(self, key: str, data: bytes) -> None:
        self._call("put", key, data)

    def create(self, key: str, data: bytes) -> bool:
        return bool(self._call("create", key, data))

    def size(self, key: str) -> int | None:
        size: int | None = self._call("size", key)
        return size

    def list(self, prefix: str) -> Iterator[StoredObject]:
        yield from self._call("list", prefix)

    def delete(self, key: str) -> None:
        self._call("delete", key)


def write_job(folder: Path, output_uri: str) -> JobConfig:
    """A job over a table of rows whose videos nobody will look for."""
    rows = [f"s3://videos/{row}.mp4,caption {row}" for row in range(NUM_ROWS)]
    (folder / "clips.csv").write_text("\n".join(["url,caption", *rows]) + "\n")
    text = f"""
dataset: demo
sources: [{{kind: table, uri: clips.csv, uri_column: url}}]
output: {{uri: "{output_uri}"}}
frames: {{size: [32, 48]}}
tokenizer:
  encoder: {{ch: 32, ch_mult: [1, 1, 1, 1], num_res_blocks: 1, z_channels: 6}}
  quantizer: {{kind: fsq, levels: [8, 8, 8, 4, 2, 2]}}
"""
    return parse_job(text, name="job.yaml", root=folder, environ={})


def drive(job: JobConfig, store: Store, attempt: str) -> None:
    """One life of a driver: plan or resume, and write and commit what is left, shard by shard.

    Everything that reaches the store is the product's; only who decodes and encodes is not here.
    """
    try:
        record = job_record.read(store)
    except NotFound:
        record = job_record.write_once(store, _record(job, store, attempt))
    plan = StoredPlan.from_json(record.plan)
    committer = claim_output(store, record.num_rows, attempt, checkpoint_every=CHECKPOINT_EVERY)
    feed = Feed(PlanReader(store, plan), committer.state.committed)
    stage = WriteStage(job.output, job.storage, record.tokenizer, record.fingerprint, plan)
    stage.store = store  # type: ignore[assignment]  # any store will do
    stage.plan_reader = PlanReader(store, plan)
    while items := feed.fetch(ROWS_PER_SHARD).items:
        clips = [_encoded(item, job) for item in items if not _is_bad(item)]
        rejected = [
            Rejected(_ref(item, job), "decode", "corrupt", "test")
            for item in items
            if _is_bad(item)
        ]
        name = f"{plan.plan_id[:12]}-{attempt}.{items[0].row}-0"
        committer.commit([stage.process(name, clips)] if clips else [], rejected)


def check_output(job: JobConfig, undisturbed: Table) -> None:
    """Every planned clip settled once, every listed object there, every code as in peace."""
    store = open_store(job.output.uri, job.storage)
    record = job_record.read(store)
    for interval in (CHECKPOINT_EVERY, 10**9):  # with checkpoints and without
        state = load_state(store, record.num_rows, interval=interval)
        assert state.committed.num_done == record.num_rows
    rows = sorted(ref.row for entry in iter_entries(store) for ref in entry.refs())
    assert rows == list(range(record.num_rows))
    for entry in iter_entries(store):
        for receipt in entry.shards:
            assert store.size(receipt.shard) == receipt.size_bytes
            assert store.size(receipt.side_table) == receipt.side_table_size_bytes
    assert table_of(job) == undisturbed


def table_of(job: JobConfig) -> Table:
    """The decoded table, read with every check of the reader."""
    table: Table = {}
    for clip in open_output(job.output.uri, job.storage).clips():
        for index, chunk in enumerate(clip.chunks):
            assert (clip.clip_id, index) not in table, f"{clip.clip_id} is there twice"
            table[clip.clip_id, index] = (chunk.codes.shape, chunk.codes.tobytes())
    return table


def _record(job: JobConfig, store: Store, attempt: str) -> JobRecord:
    plan = write_plan(job, store, attempt)
    metadata = shard_metadata(job.tokenizer.traits.codebook_size)
    return JobRecord(
        tokpipe_version="test",
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        writer=attempt,
        dataset=job.dataset,
        fingerprint=metadata.fingerprint,
        settings={},
        tokenizer=metadata.tokenizer,
        num_rows=plan.num_rows,
        plan=plan.to_json(),
        libraries={},
        job=job.model_dump(mode="json"),
    )


def _is_bad(item: WorkItem) -> bool:
    return item.row % REJECTED_EVERY == REJECTED_EVERY - 1


def _ref(item: WorkItem, job: JobConfig) -> ClipRef:
    name = clip_id(item.row_id, 0, 1, job.sampling.max_clip_frames, job.sampling.fps)
    return ClipRef(name, item.row, 0, 1, item.source_uri)


def _encoded(item: WorkItem, job: JobConfig) -> EncodedClip:
    """The same codes for the same row, in whatever life it is encoded."""
    codebook_size = job.tokenizer.traits.codebook_size
    return replace(encoded_clip(item.row, (17, 3), (4, 6), codebook_size), ref=_ref(item, job))
