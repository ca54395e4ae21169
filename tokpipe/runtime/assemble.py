"""From a job to a run: look up its output or start it, then assemble the parts of the run."""

import re
import secrets
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache, cached_property, partial
from itertools import chain, islice
from pathlib import Path

from rich.console import Console

import tokpipe
from tokpipe.config.job import JobConfig
from tokpipe.errors import NotFound, PlanMismatch
from tokpipe.formats import job_record
from tokpipe.formats.job_record import JobRecord, check_same, compared
from tokpipe.formats.layout import entry_key
from tokpipe.formats.manifest import CommittedRows, Growth, ManifestState, iter_rejected, load_state
from tokpipe.formats.shard import TokenizerSpec, estimated_bytes
from tokpipe.identity import digest, fingerprint_settings
from tokpipe.plan import PlanReader, StoredPlan, write_plan
from tokpipe.plan.changes import store_growth
from tokpipe.runtime.cluster import gpu_bytes, live_nodes
from tokpipe.runtime.commit import Committer
from tokpipe.runtime.console import say
from tokpipe.runtime.dispatch import Dispatcher, Limits
from tokpipe.runtime.dispatch.protocol import Planned
from tokpipe.stages import encode_stage
from tokpipe.stages.chunks import largest_chunk, pieces_of, plan_chunks
from tokpipe.stages.decode import DecodeStage, decoder_versions, ref_of
from tokpipe.stages.fit import EncoderMemory
from tokpipe.stages.reuse import ReusedOutput, reused_outputs
from tokpipe.stages.write import WriteStage
from tokpipe.storage import Store
from tokpipe.storage.client import split_protocol
from tokpipe.storage.store import Landmark
from tokpipe.telemetry.logs import log_event
from tokpipe.types import REMOVED, Rejected, WorkItem
from tokpipe.weights.read import read_weights

LEASE_BYTES = 64 * 2**20  # Most pixels in a lease, unless one clip has more: a GPU takes < 1 s
USUAL_CLIPS = 8
USUAL_BYTES = {"cuda": LEASE_BYTES, "cpu": 4 * 2**20}  # Until measured: 4 MiB can take seconds


@dataclass(frozen=True)
class RetryRejected:
    """Which rejected clips to try again: those with this reason, or all if it is None."""

    reason: str | None = None

    def selects(self, rejected: Rejected) -> bool:
        if rejected.stage == "plan" or not rejected.ref.clip_id:
            return False  # the plan does not change, and a purged clip is not known
        # One that was removed comes back only if that is the reason.
        return rejected.reason == self.reason or (not self.reason and rejected.reason != REMOVED)


class JobOutput:
    """A job's output and weights as a run finds them, and the id of the run's driver."""

    def __init__(self, job: JobConfig, *, extend: bool = False) -> None:
        """Open the output; raise PlanMismatch if it has other settings or sources than the job.
        Writes nothing, unless with ``extend``: what is new in the sources, for the plan to grow."""
        self.job = job
        self.driver = secrets.token_hex(4)  # Marks what this run writes: plan, entries, shards
        self.store = Store(job.output.uri, job.storage)
        self.record: JobRecord | None = None  # None before the first run
        self.state: ManifestState | None = None  # As it was looked up; None before the first run
        self.growth: Growth | None = None  # What this run adds to the plan
        with suppress(NotFound):
            self.record = job_record.read(self.store)
        self.weights = read_weights(job.tokenizer, job.storage)
        if self.record is not None:
            found = decoder_versions(job.decode, job.has_pictures)
            self.state = load_state(self.store, self.record.num_rows)
            grown = self.state.growth
            wanted = self.store, self.record, job, self.weights.hash, found, grown
            check_same(self.store.uri, *compared(*wanted, extends=extend))
            if extend:
                plan = StoredPlan.of(self.record, grown)
                self.growth = store_growth(job, self.store, plan, self.driver)

    def is_done(self, retry: RetryRejected | None) -> bool:
        """Whether every plan row is settled and no rejection is to be tried again."""
        if self.state is None or self.growth is not None or self.state.committed.num_unsettled:
            return False
        rejected = iter_rejected(self.store, self.state.next_seq)  # reads nothing yet
        return retry is None or not any(map(retry.selects, rejected))

    @cached_property
    def plan(self) -> StoredPlan:
        """The stored plan of an output that was started, with what this run adds to it."""
        assert self.record is not None
        growth = [] if self.state is None else self.state.growth
        return StoredPlan.of(self.record, [*growth, self.growth] if self.growth else growth)

    @property
    def log_context(self) -> dict[str, object]:
        """Fields of every line in the logs of a run's driver and actors."""
        plan_id = self.plan.plan_id
        return {"dataset": self.job.dataset, "plan_id": plan_id, "driver": self.driver}

    def start(self, console: Console) -> JobRecord:
        """Plan a new output and write its record. If another driver was first, use its record.

        Raises ConfigError if a GPU has too little memory for chunks, or no output can be reused,
        and PlanMismatch if the other driver has different settings.
        """
        if self.record is not None:
            return self.record
        job, store, weights_hash = self.job, self.store, self.weights.hash
        device = job.encode.device
        if device == "auto":
            gpus = sum(node["Resources"].get("GPU", 0) for node in live_nodes().values())
            device = "cuda" if gpus else "cpu"
        if device == "cuda":
            rows, why = EncoderMemory(job).batch_chunks(gpu_bytes(job.runtime))
            encode = job.encode.model_copy(update={"batch_chunks": rows})
            job = job.model_copy(update={"encode": encode})
            say(console, f"encode.batch_chunks: {rows}; {why}")
        found = decoder_versions(job.decode, job.has_pictures)
        settings = fingerprint_settings(
            job, weights_hash=weights_hash, device=device, decoders=found
        )
        reused_outputs(job, settings)  # only checks them
        say(console, "planning ...")
        plan = write_plan(job, store, self.driver)
        if plan.num_duplicates:
            examples = "; ".join(plan.duplicate_examples)
            left_out = f"{plan.num_duplicates:,} duplicate rows left out (on_duplicate: keep_first)"
            say(console, f"{left_out}, such as {examples}")
        self.record = job_record.write_once(
            store,
            JobRecord(
                tokpipe_version=tokpipe.__version__,
                created_at=datetime.now(UTC).isoformat(timespec="seconds"),
                writer=self.driver,
                dataset=job.dataset,
                fingerprint=digest(settings),
                settings=settings,
                tokenizer=TokenizerSpec.of(job.tokenizer, job.chunking, weights_hash),
                num_rows=plan.num_rows,
                plan=asdict(plan),
                libraries=settings["libraries"] | found,
                job=job.model_dump(mode="json"),
            ),
        )
        if self.record.writer != self.driver:
            check_same(store.uri, *compared(store, self.record, job, weights_hash, found))
        return self.record


class Feed:
    """Hands out the undone part of a plan in plan order, once: of a row that is cut, the segments
    that are not committed."""

    def __init__(
        self, plan: PlanReader, committed: CommittedRows, fixed: Collection[int] = ()
    ) -> None:
        """``fixed``: rows whose source was unusable, so that it may be another one by now."""
        self._fixed = fixed
        # Copied, because the committer's thread changes it: by clips that were handed out before.
        rows = committed.partial.items()
        self._partial = {row: (part.num_segments, frozenset(part.done)) for row, part in rows}
        batches = plan.iter_undone(committed.done)
        self._left = (left for batch in batches for item in batch for left in self._missing(item))

    def fetch(self, num_items: int) -> Planned:
        """Return ``num_items`` items, or all that are left."""
        items = tuple(islice(self._left, num_items))
        return Planned(items, exhausted=len(items) < num_items)

    def _missing(self, item: WorkItem) -> Iterator[WorkItem]:
        if item.row not in self._partial:
            yield replace(item, follows=True) if item.row in self._fixed else item
            return
        total, done = self._partial[item.row]
        for segment in range(total):
            if segment not in done:
                yield replace(item, segment=segment, num_segments=total)


class Run:
    """The parts of one run, ready for ``Shell``. Needs no Ray."""

    def __init__(
        self, output: JobOutput, console: Console, retry: RetryRejected | None = None
    ) -> None:
        """Claim an output that was started, and assemble the parts that do the rest."""
        record, store, plan = output.record, output.store, output.plan
        assert record is not None
        job, device = record.settled(output.job), record.device
        self.config, self.device = job.runtime, device
        state = load_state(store, record.num_rows) if output.state is None else output.state
        self.committer = Committer(store, state, output.driver)
        self.committer.claim()
        claim = entry_key(state.next_seq - 1)
        if (growth := output.growth) is not None:
            self.committer.grow(growth)
        if state.committed.num_rows != plan.num_rows:
            raise PlanMismatch(
                f"{store.uri}: another run has extended the plan since this one looked at it, so "
                "its rows would be left out. Run the same command again."
            )
        self.landmark = Landmark(store, claim, store.get(claim))  # By which actors know the output
        fixed = set[int]()
        if retry is not None:
            rejected = list(filter(retry.selects, iter_rejected(store, state.next_seq)))
            fixed = {one.ref.row for one in rejected if one.reason not in ("changed", REMOVED)}
            self.committer.reopen(rejected)
            say(console, line := f"{len(rejected):,} rejected clips will be tried again")
            log_event("rejections_reopened", line, num_clips=len(rejected))
        self.feed = Feed(PlanReader(store, plan, job.sources), state.committed, fixed)
        if device == "cpu" or job.chunking.policy == "streaming":  # Encodes one chunk at a time
            encode = job.encode.model_copy(update={"batch_chunks": 1})
            job = job.model_copy(update={"encode": encode})
        self.reused = [ReusedOutput(job, *one) for one in reused_outputs(job, record.settings)]
        others = (one.output.totals.encoders for one in self.reused)
        encoders = chain(state.totals.encoders, *others)
        limits = _known(limits_of(job, device), state, encoders)
        self.dispatcher = Dispatcher(limits, partial(ref_of, sampling=job.sampling))
        allowed = (getattr(one, "allowed_prefixes", None) or () for one in job.sources)
        uris = [*(one.uri for one in job.sources), *chain(*allowed)]
        self.decode = DecodeStage(
            *(job.sampling, job.frames, job.decode, job.storage, pieces_of(job)),
            versions=record.settings["decode"]["libraries"],
            folders=tuple(folders_of(uris)),
        )
        largest = largest_chunk(job) if device == "cuda" else None  # CPUs would take minutes
        self.encode = partial(encode_stage, job.tokenizer, job.chunking, job.encode, largest)
        self.write = WriteStage(job.output, job.storage, record.tokenizer, record.fingerprint, plan)
        self.weights = output.weights.encoding  # Of encoder and quantizer; None for random ones
        self.shard_prefix = f"{plan.plan_id[:12]}-{output.driver}"  # Of no other driver's shards
        self.log_context = output.log_context


def limits_of(job: JobConfig, device: str) -> Limits:
    """What a dispatcher needs to know of a job that has not begun."""
    traits = job.tokenizer.traits
    return Limits(
        runtime=job.runtime,
        on_gpu=device == "cuda",
        clips_per_lease=_most_clips(job, LEASE_BYTES),
        usual_clips=usual_clips(job, device),
        frame_sizes=job.frames.sizes,
        batch_chunks=min(job.encode.batch_rows, job.runtime.clips_per_lease),
        plan_chunks=cache(partial(plan_chunks, chunking=job.chunking, traits=traits)),
        hardware=job.encode.hardware,
        shard_bytes=job.output.shard_bytes,
        shard_max_age_s=job.output.shard_max_age_s,
        bytes_per_code=estimated_bytes(10**6, traits.codebook_size) / 1e6,
        max_rejected_fraction=job.max_rejected_fraction,
    )


def _known(limits: Limits, state: ManifestState, encoders: Iterable[str]) -> Limits:
    """Add what an output has already."""
    totals, rows = state.totals, state.committed
    rejected = {why: number for why, number in totals.rejected.items() if why != REMOVED}
    return replace(
        limits,
        num_clips=totals.num_clips + sum(rejected.values()) + rows.num_left,
        num_unopened=rows.num_unopened,
        rejected_before=rejected,
        encoders=frozenset(one for names in encoders for one in names.split(" + ")),
    )


def _most_clips(job: JobConfig, lease_bytes: int) -> int:
    """How many clips of pixels fit into so many bytes; at least one."""
    height, width = max(job.frames.sizes, key=lambda size: size[0] * size[1])
    clip_bytes = job.sampling.max_clip_frames * height * width * 3
    return max(1, min(job.runtime.clips_per_lease, lease_bytes // clip_bytes))


def usual_clips(job: JobConfig, device: str) -> int:
    """Clips per lease until their cost has been measured."""
    return min(USUAL_CLIPS, _most_clips(job, USUAL_BYTES[device]))


def folders_of(uris: Iterable[str]) -> Iterator[Path]:
    """The local folders that the URIs of sources name."""
    for protocol, path in map(split_protocol, uris):
        if protocol == "file":
            fixed, *pattern = re.split(r"[*?\[{]", path, maxsplit=1)
            is_folder = fixed.endswith("/") if pattern else not Path(fixed).suffix
            yield Path(fixed) if is_folder else Path(fixed).parent
