"""A store that ends its process at the Nth call, and what a driver does with a store."""

from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tests.end_to_end.jobs import Table, assert_complete, codes_of, write_job
from tests.formats.formats_helpers import Crash, encoded_clip, shard_metadata
from tokpipe.audit import Audit
from tokpipe.config import JobConfig, load_job
from tokpipe.errors import NotFound
from tokpipe.formats import job_record
from tokpipe.formats.job_record import JobRecord
from tokpipe.formats.manifest import load_state
from tokpipe.identity import clip_id
from tokpipe.plan import PlanReader, StoredPlan, write_plan
from tokpipe.plan.changes import store_growth
from tokpipe.runtime.assemble import Feed
from tokpipe.runtime.commit import Committer
from tokpipe.stages.write import WriteStage
from tokpipe.storage import Store
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

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._store, name)
        return real if name in ("uri", "uri_of") else partial(self._call, name, real)

    def _call(self, method: str, real: Callable[..., Any], key: str, *arguments: Any) -> Any:
        if self.is_dead:
            raise Crash("the dead make no calls, not even to clean up")
        self.is_dead = len(self.calls) == self._crash_at
        self.calls.append(f"{method} {key}")
        if self.is_dead and self._side == "before":
            raise Crash(self.calls[-1])
        answer = real(key, *arguments)
        if self.is_dead:
            raise Crash(self.calls[-1])
        return answer


def new_job(folder: Path, output_uri: str, num_rows: int = NUM_ROWS) -> JobConfig:
    """A job over a table of rows whose videos nobody will look for."""
    rows = [f"s3://videos/{row}.mp4,caption {row}" for row in range(num_rows)]
    table = folder / "clips.csv"
    table.write_text("\n".join(["url,caption", *rows]) + "\n")
    source = {"kind": "table", "uri": str(table), "uri_column": "url"}
    return load_job(write_job(folder / "job.yaml", source, output_uri))


def drive(job: JobConfig, store: Any, attempt: str, *, extend: bool = False) -> None:
    """One life of a driver: plan or resume, and write and commit what is left, shard by shard.

    Everything that reaches the store is the product's; only who decodes and encodes is not here.
    """
    try:
        record = job_record.read(store)
    except NotFound:
        record = job_record.write_once(store, _record(job, store, attempt))
    state = load_state(store, record.num_rows, interval=CHECKPOINT_EVERY)
    plan, growth = StoredPlan.of(record, state.growth), None
    if extend:
        growth = store_growth(job, store, plan, attempt)
    committer = Committer(store, state, attempt, CHECKPOINT_EVERY)
    committer.claim()
    if growth:
        committer.grow(growth)
        plan = StoredPlan.of(record, state.growth)
    feed = Feed(PlanReader(store, plan), committer.state.committed)
    stage = WriteStage(job.output, job.storage, record.tokenizer, record.fingerprint, plan)
    stage.store = store
    stage.plan_reader = PlanReader(store, plan)
    stage.metadata = shard_metadata(job.tokenizer.traits.codebook_size)
    while items := feed.fetch(ROWS_PER_SHARD).items:
        made = [_made_of(item, job) for item in items]
        clips = [one for one in made if isinstance(one, EncodedClip)]
        rejected = [one for one in made if isinstance(one, Rejected)]
        name = f"{plan.plan_id[:12]}-{attempt}.{items[0].row}-0"
        committer.commit([stage.process(name, clips)] if clips else [], rejected)


def check_output(job: JobConfig, undisturbed: Table) -> None:
    """Every planned clip settled once, every listed object there, every code as in peace."""
    assert_complete(job)
    store = Store(job.output.uri, job.storage)
    num_rows = job_record.read(store).num_rows  # before it was extended
    from_checkpoint = load_state(store, num_rows, interval=CHECKPOINT_EVERY)
    assert from_checkpoint.committed.num_done == NUM_ROWS
    assert Audit(store).findings.counts.keys() <= {"job_record"}  # its settings have no hash
    assert codes_of(job) == undisturbed


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
        plan=asdict(plan),
        libraries={},
        job=job.model_dump(mode="json"),
    )


def _made_of(item: WorkItem, job: JobConfig) -> EncodedClip | Rejected:
    """The same codes for the same row, in whatever life it is encoded."""
    name = clip_id(item.row_id, 0, 1, job.sampling.max_clip_frames, job.sampling.fps)
    ref = ClipRef(name, item.row, 0, 1, item.source_uri)
    if item.row % REJECTED_EVERY == REJECTED_EVERY - 1:
        return Rejected(ref, "decode", "corrupt", "test")
    codebook_size = job.tokenizer.traits.codebook_size
    return replace(encoded_clip(item.row, (17, 3), (4, 6), codebook_size), ref=ref)
