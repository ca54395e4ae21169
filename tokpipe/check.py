"""``tokpipe check``: everything about a job that can be known without torch, Ray or writing."""

from __future__ import annotations

from collections.abc import Iterator

from tokpipe.config.job import JobConfig
from tokpipe.errors import ConfigError, NotFound
from tokpipe.formats import job_record
from tokpipe.formats.manifest import load_state
from tokpipe.redact import redact
from tokpipe.sources.open import open_source
from tokpipe.sources.rows import RowSource
from tokpipe.storage import open_store
from tokpipe.weights import find_weights


def check_lines(job: JobConfig) -> Iterator[str]:
    """Yield what is found, line by line: settings, sources, weights, and the state of the output.

    Raises:
        TokpipeError: the first thing that would keep the job from running.
    """
    tokenizer, traits, chunking = job.tokenizer, job.tokenizer.traits, job.chunking
    sizes = ", ".join(f"{height}x{width}" for height, width in job.frames.sizes)
    fps = "native" if job.sampling.fps is None else f"{job.sampling.fps:g}"
    yield f"dataset {job.dataset}: {sizes} pixels at {fps} frames/s, policy {chunking.policy}"
    yield (
        f"tokenizer {tokenizer.name} ({tokenizer.kind}): {traits.temporal_stride}x"
        f"{traits.spatial_stride}x{traits.spatial_stride} pixels per code, "
        f"{traits.codebook_size:,} codes, {traits.code_dtype}"
    )
    for index, config in enumerate(job.sources):
        source = open_source(index, config, job.storage)
        columns = source.carried().names
        first = _first_clip(source)
        carried = f", carrying {', '.join(columns)}" if columns else ""
        yield f"{source.label}: first clip {redact(first)}{carried}"
    if tokenizer.weights is not None:
        size = find_weights(tokenizer.weights, job.storage)
        yield f"weights {tokenizer.weights}: {size:,} bytes"
    yield _output_line(job)


def _first_clip(source: RowSource) -> str:
    """URI of the first row without a problem, or of the first row if all have one."""
    first = None
    for batch in source.batches():
        for uri, problem in zip(batch["source_uri"], batch["problem"], strict=True):
            first = first or uri.as_py()
            if not problem.is_valid:
                return str(uri)
    if first is None:
        raise ConfigError(f"{source.label} has no rows: nothing to tokenize")
    return str(first)


def _output_line(job: JobConfig) -> str:
    store = open_store(job.output.uri, job.storage)
    try:
        record = job_record.read(store)
    except NotFound:
        return f"output {job.output.uri}: new"
    settled = load_state(store, record.num_rows).committed.num_done
    return f"output {job.output.uri}: {settled:,} of {record.num_rows:,} plan rows settled"
