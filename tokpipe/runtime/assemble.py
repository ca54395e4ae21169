"""From a job to a run: each section of the job configures its part."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tokpipe.config.job import ChunkingConfig, JobConfig, RuntimeConfig
from tokpipe.config.tokenizer import TokenizerConfig
from tokpipe.formats.job_record import JobRecord
from tokpipe.formats.layout import entry_key
from tokpipe.formats.manifest import ManifestState, iter_rejected
from tokpipe.formats.shard import estimated_bytes
from tokpipe.plan import PlanReader, StoredPlan
from tokpipe.runtime.commit import Committer, claim_output
from tokpipe.runtime.console import say
from tokpipe.runtime.dispatch import Dispatcher, Limits
from tokpipe.runtime.feed import Feed
from tokpipe.runtime.output import JobOutput, RetryRejected
from tokpipe.stages.chunks import largest_chunk, pieces_of, plan_chunks
from tokpipe.stages.decode import DecodeStage, ref_of
from tokpipe.stages.write import WriteStage
from tokpipe.storage.client import split_protocol
from tokpipe.storage.probe import Landmark
from tokpipe.telemetry.logs import log_event

if TYPE_CHECKING:
    from tokpipe.stages.encode import EncodeStage

LEASE_BYTES = 64 * 2**20
"""Most bytes of pixels in one lease, unless one clip has more: a fraction of a second on a GPU."""
USUAL_CLIPS = 8
USUAL_BYTES = {"cuda": LEASE_BYTES, "cpu": 4 * 2**20}
"""The same until the cost of a clip has been measured. On a CPU, 4 MiB can take seconds."""


@dataclass(frozen=True)
class Run:
    """The parts of one run, ready for ``Shell``. Its driver has claimed the output."""

    config: RuntimeConfig
    committer: Committer
    landmark: Landmark  # The driver's claim, by which actors recognize the output
    feed: Feed
    dispatcher: Dispatcher
    decode: DecodeStage
    encode: Callable[[], EncodeStage]  # Builds the stage in its actor, because that imports torch
    write: WriteStage
    device: str  # ``cpu`` or ``cuda``: where to encode
    weights: bytes | None  # Weights of the encoder and quantizer; None for random ones
    shard_prefix: str  # ``<plan>-<driver>``: no other driver writes shards with this prefix
    log_context: Mapping[str, object]
    """Fields of every line in the logs of the driver and its actors."""


def assemble(
    job: JobConfig,
    output: JobOutput,
    record: JobRecord,
    console: Console,
    retry: RetryRejected | None = None,
) -> Run:
    """Claim the output of a job and assemble the parts that do the rest. Needs no Ray.

    ``record`` is that of the same output, from ``look_up`` or ``start_output``.
    """
    store, plan, device = output.store, StoredPlan.from_json(record.plan), record.device
    committer = claim_output(store, record.num_rows, output.driver, known=output.state)
    claim = entry_key(committer.state.next_seq - 1)
    fixed = set[int]()
    if retry is not None:
        rejected = list(filter(retry.selects, iter_rejected(store, committer.state.next_seq)))
        fixed = {one.ref.row for one in rejected if one.reason != "changed"}
        num_clips = committer.reopen(rejected)
        line = f"{num_clips:,} rejected clips will be tried again"
        say(console, line)
        log_event("rejections_reopened", line, num_clips=num_clips)
    allowed = (getattr(one, "allowed_prefixes", None) or () for one in job.sources)
    uris = [*(one.uri for one in job.sources), *chain(*allowed)]
    if device == "cpu" or job.chunking.policy == "streaming":  # Encodes one chunk at a time
        encode = job.encode.model_copy(update={"batch_chunks": 1})
        job = job.model_copy(update={"encode": encode})
    largest = largest_chunk(job) if device == "cuda" else None  # CPUs would take minutes to check
    return Run(
        config=job.runtime,
        committer=committer,
        landmark=Landmark(store.uri, job.storage, claim, store.get(claim)),
        feed=Feed(PlanReader(store, plan, job.sources), committer.state.committed, fixed),
        dispatcher=Dispatcher(
            _limits_of(job, device, committer.state), partial(ref_of, sampling=job.sampling)
        ),
        decode=DecodeStage(
            *(job.sampling, job.frames, job.decode, job.storage, pieces_of(job)),
            versions=record.settings["decode"]["libraries"],
            folders=tuple(folders_of(uris)),
        ),
        encode=partial(_encode_stage, job.tokenizer, job.chunking, job.encode, largest),
        write=WriteStage(job.output, job.storage, record.tokenizer, record.fingerprint, plan),
        device=device,
        weights=output.weights.encoding,
        shard_prefix=f"{plan.plan_id[:12]}-{output.driver}",
        log_context=log_context(output, record),
    )


def _most_clips(job: JobConfig, lease_bytes: int) -> int:
    """How many clips of pixels fit into so many bytes; at least one."""
    height, width = max(job.frames.sizes, key=lambda size: size[0] * size[1])
    clip_bytes = job.sampling.max_clip_frames * height * width * 3
    return max(1, min(job.runtime.clips_per_lease, lease_bytes // clip_bytes))


def usual_clips(job: JobConfig, device: str) -> int:
    """Clips per lease until their cost has been measured."""
    return min(USUAL_CLIPS, _most_clips(job, USUAL_BYTES[device]))


def _limits_of(job: JobConfig, device: str, state: ManifestState) -> Limits:
    """The limits of a job's dispatcher, for encoders on a kind of device, after earlier runs."""
    totals, rows = state.totals, state.committed
    plan = partial(plan_chunks, chunking=job.chunking, traits=job.tokenizer.traits)
    return Limits(
        runtime=job.runtime,
        on_gpu=device == "cuda",
        clips_per_lease=_most_clips(job, LEASE_BYTES),
        usual_clips=usual_clips(job, device),
        frame_sizes=job.frames.sizes,
        batch_chunks=min(job.encode.batch_chunks, job.runtime.clips_per_lease),
        plan_chunks=cache(plan),
        hardware=job.encode.hardware,
        shard_bytes=job.output.shard_bytes,
        shard_max_age_s=job.output.shard_max_age_s,
        bytes_per_code=estimated_bytes(10**6, job.tokenizer.traits.codebook_size) / 1e6,
        max_rejected_fraction=job.max_rejected_fraction,
        num_clips=totals.num_clips + totals.num_rejected + rows.num_left,
        num_unopened=rows.num_unopened,
        rejected_before=dict(totals.rejected),
        encoders=frozenset(one for names in totals.encoders for one in names.split(" + ")),
    )


def log_context(output: JobOutput, record: JobRecord) -> dict[str, object]:
    """Fields of every line in the log of a run."""
    plan = StoredPlan.from_json(record.plan)
    return {"dataset": record.dataset, "plan_id": plan.plan_id, "driver": output.driver}


def _encode_stage(tokenizer: TokenizerConfig, chunking: ChunkingConfig, *rest: Any) -> EncodeStage:
    from tokpipe.stages.encode import EncodeStage

    return EncodeStage(tokenizer, chunking, *rest)


def folders_of(uris: Iterable[str]) -> Iterator[Path]:
    """The local folders that the URIs of sources name."""
    for protocol, path in map(split_protocol, uris):
        if protocol == "file":
            fixed, *pattern = re.split(r"[*?\[{]", path, maxsplit=1)
            is_folder = fixed.endswith("/") if pattern else not Path(fixed).suffix
            yield Path(fixed) if is_folder else Path(fixed).parent
