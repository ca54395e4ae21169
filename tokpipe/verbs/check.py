"""``tokpipe check``: everything about a job that can be known without torch, Ray or writing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tokpipe.config.job import JobConfig
from tokpipe.errors import ConfigError, NotFound
from tokpipe.formats import job_record
from tokpipe.formats.manifest import load_state
from tokpipe.sources import open_source
from tokpipe.sources.rows import RowSource
from tokpipe.storage import open_store
from tokpipe.telemetry.redact import redact
from tokpipe.weights.read import find_weights


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at and found good: ``subject`` is which, such as ``source``."""

    subject: str
    text: str
    facts: Mapping[str, Any]

    def __str__(self) -> str:
        return self.text


def findings_json(findings: Iterable[Finding]) -> str:
    """All of them, on one line: a list with ``subject`` and the facts of each."""
    return json.dumps([{"subject": one.subject, **one.facts} for one in findings])


def check(job: JobConfig) -> Iterator[Finding]:
    """Yield what is found: settings, tokenizer, sources, weights, and the state of the output.

    Raises:
        TokpipeError: the first thing that would keep the job from running.
    """
    tokenizer, traits, chunking = job.tokenizer, job.tokenizer.traits, job.chunking
    sizes = ", ".join(f"{height}x{width}" for height, width in job.frames.sizes)
    fps = "native" if job.sampling.fps is None else f"{job.sampling.fps:g}"
    yield Finding(
        "dataset",
        f"dataset {job.dataset}: {sizes} pixels at {fps} frames/s, policy {chunking.policy}",
        {
            "name": job.dataset,
            "sizes": [list(size) for size in job.frames.sizes],
            "fps": job.sampling.fps,
            "policy": chunking.policy,
        },
    )
    yield Finding(
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
    for index, config in enumerate(job.sources):
        source = open_source(index, config, job.storage)
        columns = source.carried().names
        first = redact(_first_clip(source))
        carried = f", carrying {', '.join(columns)}" if columns else ""
        yield Finding(
            "source",
            f"{source.label}: first clip {first}{carried}",
            {"label": source.label, "first_clip": first, "columns": list(columns)},
        )
    if tokenizer.weights is not None:
        size = find_weights(tokenizer.weights, job.storage)
        yield Finding(
            "weights",
            f"weights {tokenizer.weights}: {size:,} bytes",
            {"uri": tokenizer.weights, "size_bytes": size},
        )
    yield _output(job)


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


def _output(job: JobConfig) -> Finding:
    uri = job.output.uri
    store = open_store(uri, job.storage)
    try:
        record = job_record.read(store)
    except NotFound:
        return Finding("output", f"output {uri}: new", {"uri": uri, "is_new": True})
    settled = load_state(store, record.num_rows).committed.num_done
    return Finding(
        "output",
        f"output {uri}: {settled:,} of {record.num_rows:,} plan rows settled",
        {
            "uri": uri,
            "is_new": False,
            "num_rows": record.num_rows,
            "num_rows_done": settled,
        },
    )
