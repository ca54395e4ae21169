"""A job's output before any work: look it up, check that it matches the job, or start it."""

import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime

from rich.console import Console

import tokpipe
from tokpipe.config.job import JobConfig
from tokpipe.errors import NotFound
from tokpipe.formats import job_record
from tokpipe.formats.job_record import JobRecord
from tokpipe.formats.manifest import ManifestState, iter_rejected, load_state
from tokpipe.formats.tokenizer_spec import TokenizerSpec
from tokpipe.identity.fingerprint import fingerprint, fingerprint_settings
from tokpipe.plan import write_plan
from tokpipe.runtime.cluster import live_nodes
from tokpipe.runtime.console import say
from tokpipe.stages.decode import decoder_versions
from tokpipe.storage import open_store
from tokpipe.storage.store import Store
from tokpipe.types import Rejected
from tokpipe.weights.read import TokenizerWeights, read_weights


@dataclass(frozen=True)
class RetryRejected:
    """Which rejected clips to try again: those with this reason, or all of them if it is None."""

    reason: str | None = None

    def selects(self, rejected: Rejected) -> bool:
        # A row that the plan rejected stays rejected, because the plan does not change.
        return rejected.stage != "plan" and self.reason in (None, rejected.reason)


@dataclass(frozen=True)
class JobOutput:
    """A job's output and weights as a run finds them, and the id of the run's driver."""

    store: Store
    weights: TokenizerWeights
    record: JobRecord | None = None  # None before the first run
    state: ManifestState | None = None  # The manifest when it was looked up; None as above
    driver: str = field(default_factory=lambda: secrets.token_hex(4))
    """Marks the plan, manifest entries and shards of this run."""

    def is_done(self, retry: RetryRejected | None) -> bool:
        """Whether every plan row is settled and no rejection is to be tried again."""
        if self.record is None or self.state is None:
            return False
        rejected = iter_rejected(self.store, self.state.next_seq)  # reads nothing yet
        return self.state.committed.num_done == self.record.num_rows and (
            retry is None or not any(map(retry.selects, rejected))
        )


def look_up(job: JobConfig) -> JobOutput:
    """Open a job's output and check that the job may resume it. Writes nothing.

    Raises:
        PlanMismatch: the output was started with different settings or sources.
    """
    store = open_store(job.output.uri, job.storage)
    try:
        record = job_record.read(store)
    except NotFound:
        record = None
    weights = read_weights(job.tokenizer, job.storage)
    if record is None:
        return JobOutput(store, weights)
    job_record.check_resumable(store, record, job, weights.hash, decoder_versions(job.decode))
    return JobOutput(store, weights, record, load_state(store, record.num_rows))


def start_output(job: JobConfig, output: JobOutput, console: Console) -> JobRecord:
    """Plan a new output and write its record. If another driver was first, use its record.

    Raises:
        PlanMismatch: another driver started the output with different settings.
    """
    store, driver, weights_hash = output.store, output.driver, output.weights.hash
    device = job.encode.device
    if device == "auto":
        gpus = sum(node["Resources"].get("GPU", 0) for node in live_nodes().values())
        device = "cuda" if gpus else "cpu"
    found = decoder_versions(job.decode)
    settings = fingerprint_settings(job, weights_hash=weights_hash, device=device, decoders=found)
    say(console, "planning ...")
    plan = write_plan(job, store, driver)
    if plan.num_duplicates:
        examples = "; ".join(plan.duplicate_examples)
        left_out = f"{plan.num_duplicates:,} duplicate rows left out (on_duplicate: keep_first)"
        say(console, f"{left_out}, such as {examples}")
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
            libraries=settings["libraries"] | found,
            job=job.model_dump(mode="json"),
        ),
    )
    if record.writer != driver:
        job_record.check_resumable(store, record, job, weights_hash, found)
    return record
