"""``tokpipe check``: everything about a job that can be checked without torch, Ray or writing."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tokpipe.config.job import JobConfig
from tokpipe.errors import ConfigError, NotFound
from tokpipe.formats import job_record
from tokpipe.formats.manifest import load_state
from tokpipe.sources import open_sources
from tokpipe.sources.rows import RowSource
from tokpipe.storage import open_store
from tokpipe.telemetry.redact import redact
from tokpipe.weights.read import find_weights


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One part of a job that was checked and can be used."""

    subject: str
    """Which part, such as ``"source"``."""
    text: str
    facts: Mapping[str, Any]
    """What ``text`` says, for programs."""


def check(job: JobConfig) -> Iterator[CheckResult]:
    """Check settings, tokenizer, sources, weights and output, and yield what is found.

    Raises:
        TokpipeError: the first problem that would keep the job from running.
    """
    tokenizer, traits, policy = job.tokenizer, job.tokenizer.traits, job.chunking.policy
    sizes = ", ".join(f"{height}x{width}" for height, width in job.frames.sizes)
    fps = "native" if job.sampling.fps is None else f"{job.sampling.fps:g}"
    yield CheckResult(
        "dataset",
        f"dataset {job.dataset}: {sizes} pixels at {fps} frames/s, policy {policy}",
        {
            "name": job.dataset,
            "sizes": [list(size) for size in job.frames.sizes],
            "fps": job.sampling.fps,
            "policy": policy,
        },
    )
    yield CheckResult(
        "tokenizer",
        f"tokenizer {tokenizer.name} ({tokenizer.kind}): {traits.temporal_stride}x"
        f"{traits.spatial_stride}x{traits.spatial_stride} pixels per code, "
        f"{traits.codebook_size:,} codes, {traits.code_dtype}",
        {
            "name": tokenizer.name,
            "kind": tokenizer.kind,
            "temporal_stride": traits.temporal_stride,
            "spatial_stride": traits.spatial_stride,
            "codebook_size": traits.codebook_size,
            "code_dtype": traits.code_dtype,
        },
    )
    for source in open_sources(job.sources, job.storage, job.output.uri):
        columns = source.carried().names
        first = redact(_first_clip(source))
        carried = f", carrying {', '.join(columns)}" if columns else ""
        left_out = f"; left out: {there}" if (there := source.left_out.text) else ""
        yield CheckResult(
            "source",
            f"{source.label}: first clip {first}{carried}{left_out}",
            {
                "label": source.label,
                "first_clip": first,
                "columns": list(columns),
                "left_out": source.left_out.counts,
            },
        )
    if (uri := tokenizer.weights) is not None:
        size = find_weights(uri, job.storage)
        facts = {"uri": uri, "size_bytes": size}
        yield CheckResult("weights", f"weights {uri}: {size:,} bytes", facts)
    yield _check_output(job)


def _first_clip(source: RowSource) -> str:
    """Return the URI of the first usable row, or of the first row if all have problems."""
    first = None
    for batch in source.batches():
        for uri, problem in zip(batch["source_uri"], batch["problem"], strict=True):
            first = first or uri.as_py()
            if not problem.is_valid:
                return str(uri)
    if first is None:
        raise ConfigError(f"{source.label} has no rows, so there is nothing to tokenize")
    return str(first)


def _check_output(job: JobConfig) -> CheckResult:
    uri = job.output.uri
    store = open_store(uri, job.storage)
    try:
        num_rows = job_record.read(store).num_rows
    except NotFound:
        return CheckResult("output", f"output {uri}: new", {"uri": uri, "is_new": True})
    done = load_state(store, num_rows).committed.num_done
    facts = {"uri": uri, "is_new": False, "num_rows": num_rows, "num_rows_done": done}
    return CheckResult("output", f"output {uri}: {done:,} of {num_rows:,} plan rows settled", facts)
