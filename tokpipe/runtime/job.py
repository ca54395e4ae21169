"""One run of a job, from the job file's settings to an outcome: plan, resume, work, sum up."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import FrameType
from typing import Any, Literal, NamedTuple

import ray
from rich.console import Console

import tokpipe
from tokpipe.config.job import JobConfig
from tokpipe.errors import Fenced, NotFound, UnsafeStore
from tokpipe.formats import job_record
from tokpipe.formats.job_record import JobRecord
from tokpipe.formats.manifest import ManifestState, Totals, iter_rejected, load_state
from tokpipe.formats.shard import estimated_bytes
from tokpipe.formats.tokenizer_spec import TokenizerSpec
from tokpipe.identity.fingerprint import fingerprint, fingerprint_settings
from tokpipe.identity.ids import clip_id
from tokpipe.plan import PlanReader, StoredPlan, write_plan
from tokpipe.runtime.cluster import connected, has_gpu
from tokpipe.runtime.commit import Committer, claim_output
from tokpipe.runtime.dispatch import Dispatcher, Limits
from tokpipe.runtime.dispatch.protocol import Finish
from tokpipe.runtime.feed import Feed
from tokpipe.runtime.metrics import JobMetrics
from tokpipe.runtime.progress import ProgressLog, ProgressView
from tokpipe.runtime.shell import Shell, Stages
from tokpipe.runtime.snapshot import Snapshots
from tokpipe.stages.chunks import pieces_of
from tokpipe.stages.decode import DecodeStage
from tokpipe.stages.encode import EncodeStage
from tokpipe.stages.write import WriteStage
from tokpipe.storage import open_store, probe_store
from tokpipe.storage.store import Store
from tokpipe.telemetry.account import Account
from tokpipe.telemetry.logs import EventName, driver_log, log_event
from tokpipe.telemetry.redact import redact
from tokpipe.telemetry.speed import Speed, speed_of
from tokpipe.types import ClipRef, Rejected, WorkItem
from tokpipe.weights.read import TokenizerWeights, read_weights

LEASE_BYTES = 64 * 2**20
"""Pixels that one lease should hold at most, though never fewer than one clip's: a fraction of a
second of a GPU's time."""
USUAL_CLIPS = 8
USUAL_BYTES = {"cuda": LEASE_BYTES, "cpu": 4 * 2**20}
"""The same while it is not known how long clips take: on a CPU, 4 MiB may take some seconds."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended, and what the output holds by then."""

    ended: Literal["done", "stopped"]
    totals: Totals
    elapsed_s: float
    num_left: int
    """Plan rows that are not settled."""
    account: Account = field(default_factory=Account)
    """What this run did."""
    signal: int | None = None
    """The signal that stopped the run, or SIGTERM if a notice did."""
    was_drained: bool = False
    """It was stopped because its node is about to go."""

    @property
    def rejected_fraction(self) -> float:
        clips = self.totals.num_clips + self.totals.num_rejected
        return self.totals.num_rejected / clips if clips else 0.0

    @property
    def speed(self) -> Speed | None:
        """How near this run was to the speed of its encoders, and what limited it."""
        return speed_of(self.account)


@dataclass(frozen=True)
class Retry:
    """Which rejected clips to try again: those of one reason, or of any if it is None."""

    reason: str | None = None

    def takes(self, rejected: Rejected) -> bool:
        # What the plan already knew to be no clip will not become one.
        return rejected.stage != "plan" and self.reason in (None, rejected.reason)


def run_job(job: JobConfig, console: Console, retry: Retry | None = None) -> Outcome:
    """Start or resume a job and work until it is done, or stopped by SIGINT or SIGTERM.

    Args:
        retry: rejections to withdraw first, so that their clips are work again.

    Raises:
        TokpipeError: see ``errors``; whatever was committed before stays.
    """
    started = time.monotonic()
    driver = secrets.token_hex(4)
    store, weights, record, state = look_up(job)
    if (
        record is not None
        and state is not None
        and state.committed.num_done == record.num_rows
        and not _any_to_retry(store, retry)
    ):
        return Outcome("done", state.totals, time.monotonic() - started, 0)
    _probe(store, job, console)

    console.print("connecting to Ray ...", highlight=False)
    with connected(job.runtime.cluster):
        if record is None:
            record = start_output(store, job, weights.hash, driver, console)
        device = _recorded_device(record, job)
        plan = StoredPlan.from_json(record.plan)
        with (
            ProgressView(console, job.runtime.progress_interval_s) as view,
            driver_log(job.runtime.log_path, view.say, _log_context(job, plan, driver)),
            _ends_logged(),
        ):
            committer, feed = take_up(store, record, driver, console, known=state, retry=retry)
            state = committer.state
            _log_start(job, record, state, device)
            view.say(
                f"{job.output.uri}: {record.num_rows:,} plan rows, {state.committed.num_done:,} "
                f"settled before; encoding on {device}"
            )
            dispatcher = Dispatcher(limits_of(job, device), lambda item: ref_of(item, job))
            stages = stages_of(job, record, plan, device, weights.encoding, driver)
            snapshots = Snapshots(state)
            shown_by = (
                view,
                ProgressLog(job.runtime.progress_interval_s),
                JobMetrics(job.dataset, plan.plan_id),
            )

            def show_progress() -> None:
                snapshot = snapshots.take(dispatcher)
                for one in shown_by:
                    one.show(snapshot)

            shell = Shell(dispatcher, feed, committer, stages, job.runtime, show_progress)
            with _stopped_by_signals(shell) as signals:
                finish = shell.run()
            show_progress()
            _log_end(finish, state)
    stopped_by = signals[0] if signals else signal.SIGTERM if shell.was_drained else None
    return Outcome(
        finish.outcome,
        state.totals,
        time.monotonic() - started,
        record.num_rows - state.committed.num_done,
        dispatcher.ledger.account,
        stopped_by if finish.outcome == "stopped" else None,
        shell.was_drained,
    )


def _any_to_retry(store: Store, retry: Retry | None) -> bool:
    return retry is not None and any(retry.takes(one) for one in iter_rejected(store))


# --- starting and resuming ----------------------------------------------------------------------


class Found(NamedTuple):
    """What there is of a job before it runs."""

    store: Store
    weights: TokenizerWeights
    record: JobRecord | None
    """None for an output that was never begun."""
    state: ManifestState | None
    """What was committed when it was looked up."""


def look_up(job: JobConfig) -> Found:
    """Open a job's output, and refuse it if it has other codes or another plan. Writes nothing.

    Raises:
        TokpipeError: see ``errors``.
    """
    store = open_store(job.output.uri, job.storage)
    record = _existing(store)
    weights = read_weights(job.tokenizer, job.storage)
    if record is None:
        return Found(store, weights, None, None)
    _check_same(store, record, job, weights.hash, _recorded_device(record, job))
    return Found(store, weights, record, load_state(store, record.num_rows))


def take_up(
    store: Store,
    record: JobRecord,
    driver: str,
    console: Console,
    *,
    known: ManifestState | None = None,
    retry: Retry | None = None,
) -> tuple[Committer, Feed]:
    """Claim an output for this driver, withdraw the rejections to retry, and feed what is left.

    Args:
        known: what was committed when it was looked up.

    Raises:
        TokpipeError: see ``errors``.
    """
    committer = claim_output(store, record.num_rows, driver, known=known)
    if retry is not None:
        rejected = list(filter(retry.takes, iter_rejected(store, committer.state.next_seq)))
        num_clips = committer.reopen(rejected)
        line = f"{num_clips:,} rejected clips will be tried again"
        console.print(line, highlight=False)
        log_event("rejections_reopened", line, num_clips=num_clips)
    plan = StoredPlan.from_json(record.plan)
    return committer, Feed(PlanReader(store, plan), committer.state.committed)


def _existing(store: Store) -> JobRecord | None:
    try:
        return job_record.read(store)
    except NotFound:
        return None


def _recorded_device(record: JobRecord, job: JobConfig) -> str:
    """An output goes on with the kind of device that it began with, whatever ``auto`` finds."""
    if job.encode.device != "auto":
        return job.encode.device
    return str(record.settings["encode"]["device"])


def _check_same(
    store: Store, record: JobRecord, job: JobConfig, weights_hash: str, device: str
) -> None:
    """Refuse to mix two kinds of codes, or two plans, in one output."""
    wanted = fingerprint_settings(job, weights_hash=weights_hash, device=device)
    job_record.check_same(
        store.uri,
        {**record.settings, **_inputs(record.job)},
        {**wanted, **_inputs(job.model_dump(mode="json"))},
    )


def _inputs(resolved: dict[str, Any]) -> dict[str, Any]:
    """What of a resolved job decides the rows of its plan, which is made once."""
    sources = [
        # Where rows may point to is checked while planning, and older jobs did not have it.
        {key: value for key, value in source.items() if key != "allowed_prefixes"}
        for source in resolved["sources"]
    ]
    return {**{key: resolved[key] for key in ("dataset", "on_duplicate")}, "sources": sources}


def _probe(store: Store, job: JobConfig, console: Console) -> None:
    try:
        probe_store(store)
    except UnsafeStore as error:
        if not job.output.accept_unsafe_store:
            raise
        console.print(redact(f"warning: {error}"), style="yellow", markup=False, soft_wrap=True)


def start_output(
    store: Store, job: JobConfig, weights_hash: str, driver: str, console: Console
) -> JobRecord:
    """Plan a new output and write its record; another driver's record wins if it came first."""
    device = job.encode.device
    if device == "auto":
        device = "cuda" if has_gpu() else "cpu"
    settings = fingerprint_settings(job, weights_hash=weights_hash, device=device)
    console.print("planning ...", highlight=False)
    plan = write_plan(job, store, driver)
    if plan.num_duplicates:
        console.print(
            f"{plan.num_duplicates:,} duplicate rows left out (on_duplicate: keep_first), such as "
            f"{'; '.join(plan.duplicate_examples)}",
            markup=False,
            soft_wrap=True,
        )
    record = job_record.write_once(
        store,
        JobRecord(
            tokpipe_version=tokpipe.__version__,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            writer=driver,
            dataset=job.dataset,
            fingerprint=fingerprint(settings),
            settings=settings,
            tokenizer=TokenizerSpec.of(job.tokenizer, job.chunking, weights_hash),
            num_rows=plan.num_rows,
            plan=plan.to_json(),
            libraries=dict(settings["libraries"]),
            job=job.model_dump(mode="json"),
        ),
    )
    if record.writer != driver:
        _check_same(store, record, job, weights_hash, _recorded_device(record, job))
    return record


# --- putting the parts together -----------------------------------------------------------------


def limits_of(job: JobConfig, device: str) -> Limits:
    height, width = max(job.frames.sizes, key=lambda size: size[0] * size[1])
    clip_bytes = job.sampling.max_clip_frames * height * width * 3
    million = 10**6
    most = max(1, min(job.runtime.clips_per_lease, LEASE_BYTES // clip_bytes))
    return Limits(
        runtime=job.runtime,
        on_gpu=device == "cuda",
        clips_per_lease=most,
        usual_clips=max(1, min(USUAL_CLIPS, most, USUAL_BYTES[device] // clip_bytes)),
        shard_bytes=job.output.shard_bytes,
        shard_max_age_s=job.output.shard_max_age_s,
        bytes_per_code=estimated_bytes(million, job.tokenizer.traits.codebook_size) / million,
    )


def stages_of(
    job: JobConfig,
    record: JobRecord,
    plan: StoredPlan,
    device: str,
    weights: bytes | None,
    driver: str,
) -> Stages:
    # A CPU gains nothing from batches, and would lose what it takes to fill them up.
    encode = job.encode if device == "cuda" else job.encode.model_copy(update={"batch_chunks": 1})
    return Stages(
        decode=DecodeStage(job.sampling, job.frames, job.decode, job.storage, pieces_of(job)),
        encode=EncodeStage(job.tokenizer, job.chunking, encode),
        write=WriteStage(job.output, job.storage, record.tokenizer, record.fingerprint, plan),
        device=device,
        weights=ray.put(weights),
        shard_prefix=f"{plan.plan_id[:12]}-{driver}",
        log_context=_log_context(job, plan, driver),
    )


def ref_of(item: WorkItem, job: JobConfig) -> ClipRef:
    total = item.num_segments or 1
    sampling = job.sampling
    name = clip_id(item.row_id, item.segment, total, sampling.max_clip_frames, sampling.fps)
    return ClipRef(name, item.row, item.segment, total, redact(item.source_uri))


# --- what is told of a run ----------------------------------------------------------------------


def _log_context(job: JobConfig, plan: StoredPlan, driver: str) -> dict[str, object]:
    return {"dataset": job.dataset, "plan_id": plan.plan_id, "driver": driver}


def _log_start(job: JobConfig, record: JobRecord, state: ManifestState, device: str) -> None:
    log_event(
        "run_started",
        f"{job.output.uri}: {record.num_rows:,} plan rows on {device}",
        output_uri=job.output.uri,
        fingerprint=record.fingerprint,
        num_rows=record.num_rows,
        num_rows_done=state.committed.num_done,
        device=device,
        host=socket.gethostname(),
        pid=os.getpid(),
        tokpipe_version=tokpipe.__version__,
    )


def _log_end(finish: Finish, state: ManifestState) -> None:
    totals = state.totals
    log_event(
        "run_ended",
        f"{finish.outcome}: the output holds {totals.num_clips:,} clips",
        outcome=finish.outcome,
        num_rows_done=state.committed.num_done,
        num_shards=totals.num_shards,
        num_clips=totals.num_clips,
        num_frames=totals.num_frames,
        num_codes=totals.num_codes,
        size_bytes=totals.size_bytes,
        rejected=dict(totals.rejected),
    )


@contextmanager
def _ends_logged() -> Iterator[None]:
    """Let a run that ends with an error say so in its log; what became of it is the caller's."""
    try:
        yield
    except BaseException as error:
        event: EventName = "claim_lost" if isinstance(error, Fenced) else "run_failed"
        log_event(event, str(error), level=logging.ERROR, error=type(error).__name__)
        raise


@contextmanager
def _stopped_by_signals(shell: Shell) -> Iterator[list[int]]:
    """Let the first SIGINT or SIGTERM end the run in good order, and the second at once."""
    seen: list[int] = []
    before: dict[int, Any] = {}

    def on_signal(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        if len(seen) > 1:
            raise KeyboardInterrupt
        shell.stop()

    for stopping in (signal.SIGINT, signal.SIGTERM):
        before[stopping] = signal.signal(stopping, on_signal)
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
