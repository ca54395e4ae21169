"""``tokpipe check``: try what a run needs on this machine, without Ray; say what was not tried."""

from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np

from tokpipe.config.job import JobConfig
from tokpipe.config.sources import MEDIA_EXTENSIONS, Source
from tokpipe.errors import ConfigError, NotFound, UnsafeStore
from tokpipe.formats import job_record
from tokpipe.plan import RowSample, StoredPlan, merge_columns
from tokpipe.plan.changes import HOW_TO_EXTEND, SourceChanges
from tokpipe.reader import Output
from tokpipe.sources import open_sources
from tokpipe.sources.rows import RowSource
from tokpipe.stages.decode import DecodeStage, decoder_versions
from tokpipe.stages.fit import EncoderMemory
from tokpipe.storage import Store, probe_store
from tokpipe.telemetry.human import counted, counts_text
from tokpipe.telemetry.redact import redact
from tokpipe.types import Cut, Failed, Rejected
from tokpipe.weights.read import TokenizerWeights, find_weights, read_weights

MAX_ROWS = 200_000  # Read of each source: a table of 100 million is not worth it for a check
_MAX_TAR_ROWS = 5_000  # Listing a tar takes a request per member
_FIRST_FRAME = Cut(1, 1)
NOT_CHECKED = "not checked"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """A part of a job that can be used, a warning, what was not checked; or part of a ``diff``."""

    subject: str  # Such as ``"source"``, ``"warning"`` or ``"not checked"``
    text: str
    facts: Mapping[str, Any] = field(default_factory=dict)  # What ``text`` says, for programs


def check(
    job: JobConfig, *, num_sampled: int = 4, seed: int = 0, extend: bool = False
) -> Iterator[CheckResult]:
    """Check a job, opening ``num_sampled`` videos of each source; what was not checked comes last.
    Raises the first problem that would stop a run, with ``extend`` one that extends its output."""
    skipped = []
    for found in _steps(job, num_sampled, seed, extend):
        if found.subject == NOT_CHECKED:
            skipped.append(found)
        else:
            yield found
    yield from skipped


def _steps(job: JobConfig, num_sampled: int, seed: int, extend: bool) -> Iterator[CheckResult]:
    yield from _settings(job)
    yield from _sources(job, num_sampled, seed)
    weights = yield from _trial(job)
    yield from _output(job, weights, extend)
    if job.runtime.cluster != "local":
        others = "whether other machines of a cluster can use the sources, tokenizer and output"
        yield _not_checked(others, "they were tried on this machine only")


def _warning(text: str, **facts: Any) -> CheckResult:
    return CheckResult("warning", f"warning: {text}", {"warning": text, **facts})


def _not_checked(what: str, why: str) -> CheckResult:
    return CheckResult(NOT_CHECKED, f"not checked: {what} ({why})", {"what": what, "why": why})


def _settings(job: JobConfig) -> Iterator[CheckResult]:
    sizes = ", ".join(f"{height}x{width}" for height, width in job.frames.sizes)
    fps, policy = job.sampling.fps, job.chunking.policy
    rate = "native" if fps is None else f"{fps:g}"
    text = f"dataset {job.dataset}: {sizes} pixels at {rate} frames/s, policy {policy}"
    facts = {"name": job.dataset, "sizes": job.frames.sizes, "fps": fps, "policy": policy}
    yield CheckResult("dataset", text, facts)
    tokenizer, traits = job.tokenizer, job.tokenizer.traits
    names = ("temporal_stride", "spatial_stride", "codebook_size", "code_dtype")
    yield CheckResult(
        "tokenizer",
        f"tokenizer {tokenizer.name} ({tokenizer.kind}): {traits.temporal_stride}x"
        f"{traits.spatial_stride}x{traits.spatial_stride} pixels per code, "
        f"{' + '.join(f'{size:,}' for size in traits.sizes)} codes, {traits.code_dtype}",
        {name: getattr(tokenizer, name) for name in ("name", "kind")}
        | {name: getattr(traits, name) for name in names},
    )


def _sources(job: JobConfig, num_sampled: int, seed: int) -> Iterator[CheckResult]:
    sources = open_sources(job.sources, job.storage, job.output.uri)
    merge_columns(sources)
    samples = []
    for source, config in zip(sources, job.sources, strict=True):
        max_rows = _max_rows([config])
        rows = RowSample(source, job.dataset, num_items=num_sampled, max_rows=max_rows, seed=seed)
        yield from _rows(source, rows)
        yield from _videos(job, source, rows)
        samples.append(rows)
    hashes = np.concatenate([rows.hashes for rows in samples])
    repeated = len(hashes) - len(np.unique(hashes))
    if repeated and job.on_duplicate == "refuse":
        found = f"{repeated:,} of {len(hashes):,} rows repeat the clip of an earlier row"
        why = "the dataset would hold its codes twice, and a run stops before any work"
        do = "Remove them, or set on_duplicate: keep_first"
        raise ConfigError(f"{found}, so {why}. `tokpipe plan` names the first such rows. {do}")


def _rows(source: RowSource, rows: RowSample) -> Iterator[CheckResult]:
    if not rows.items:
        none = f"none of {rows.num_rows:,} rows can be used; the first: {rows.problem}"
        found = f"{source.label}: {none if rows.num_rows else 'it has no rows'}"
        raise ConfigError(f"{found}. There is nothing to tokenize")
    columns, example = source.carried().names, redact(rows.items[0].source_uri)
    carried = f", carrying {', '.join(columns)}" if columns else ""
    left_out = f"; left out: {there}" if (there := source.listing.left_out.text) else ""
    if any(f" .{one} (" in left_out for one in MEDIA_EXTENSIONS["image"]):
        left_out += ". To take pictures as well, set media: both"
    count = "more than " * (not rows.is_complete) + counted(rows.num_rows, "row")
    yield CheckResult(
        "source",
        f"{source.label}: {count}, such as {example}{carried}{left_out}",
        {
            "label": source.label,
            "num_rows": rows.num_rows,
            "is_complete": rows.is_complete,
            "num_bad_rows": rows.num_problems,
            "example": example,
            "columns": list(columns),
            "left_out": source.listing.left_out.counts,
        },
    )
    if rows.num_problems:
        bad = f"{rows.num_problems:,} of {rows.num_rows:,} rows will be rejected as bad_row"
        yield _warning(f"{bad}; the first: {rows.problem}")
    if not rows.is_complete:
        short = source.label.partition(" ")[0]
        yield _not_checked(f"rows of {short} after the first {rows.num_rows:,}", "too many")


def _videos(job: JobConfig, source: RowSource, rows: RowSample) -> Iterator[CheckResult]:
    """Decode the first frame of each sampled video."""
    num_good, short = rows.num_rows - rows.num_problems, source.label.partition(" ")[0]
    noun = {"video": "video", "image": "picture"}.get(source.config.media, "file")
    if not find_spec("av"):
        yield _not_checked(f"{noun}s of {short}", "PyAV is not installed here")
        return
    # A clip's length is checked whole, but only its first frame is decoded.
    with DecodeStage(job.sampling, job.frames, job.decode, job.storage, _FIRST_FRAME) as stage:
        found = stage.process(rows.items)
    bad = [one for one in found if isinstance(one, Rejected | Failed)]
    reasons = dict(Counter(one.reason for one in bad).most_common())
    example = redact(f"{bad[0].ref.source_uri}: {bad[0].message}") if bad else None
    if bad and len(bad) == len(found):
        raise ConfigError(
            f"{source.label}: opened {len(found)} of its {noun}s, and none can be decoded "
            f"({counts_text(reasons)}), such as {example}. A run would reject most of its clips, "
            f"if not all: correct the source, or its access to the {noun}s"
        )
    text = f"rejected {len(bad)} ({counts_text(reasons)}), such as {example}" if bad else "all fine"
    facts = {"label": source.label, "num_opened": len(found), "reasons": reasons}
    opened = f"  opened {counted(len(found), noun)}: {text}"
    yield CheckResult("videos", opened, {**facts, "example": example})
    share = 1 - (1 - len(bad) / len(found)) * num_good / rows.num_rows
    if share > (most := job.max_rejected_fraction):
        typical = f"the run ends with exit code 4: max_rejected_fraction is {most:g}"
        rejected = f"about {share:.0%} of {source.label} would be rejected"
        yield _warning(f"{rejected}. If that is typical, {typical}")
    if num_good > len(found):
        left = f"{num_good - len(found):,} of {num_good:,} {noun}s of {short}"
        yield _not_checked(left, "only a sample was opened; --sample N opens more")
    if source.config.media != "image":
        later = f"what comes after the first frame of each video of {short}"
        yield _not_checked(later, "decoding all takes long")


def _trial(job: JobConfig) -> Generator[CheckResult, None, TokenizerWeights | None]:
    """Build the tokenizer and let it encode noise; return its weights if they were read."""
    tokenizer, encode = job.tokenizer, job.encode
    if (uri := tokenizer.weights) is not None:
        size = find_weights(uri, job.storage)
        facts = {"uri": uri, "size_bytes": size}
        yield CheckResult("weights", f"weights {uri}: {size:,} bytes", facts)
    for name in ("torch", "safetensors", *tokenizer.libraries):
        if not find_spec(name):
            yield _not_checked("the tokenizer and its weights", f"{name} is not installed here")
            return None
    # Imported late: torch takes seconds.
    from tokpipe.stages.encode import try_tokenizer

    weights = read_weights(tokenizer, job.storage)
    device = try_tokenizer(tokenizer, job.chunking, encode, weights.encoding)
    text = f"  encoded noise on {device}: shapes and codes are as declared"
    yield CheckResult("trial", text, {"device": device})
    if encode.device != "cpu" and device == "cpu":
        waits = "; a run that has only this machine would wait for one"
        why = "this machine has none" + waits * (encode.device == "cuda")
        yield _not_checked("codes on a GPU", why)
    memory = [] if encode.device == "cpu" else [*EncoderMemory(job).by_size()]
    for facts in memory:
        yield CheckResult("memory", f"  {facts['text']}", facts)
    what = "speed" if memory else "memory and speed"
    yield _not_checked(what, "the tokenizer was tried on a small clip")
    return weights


def _max_rows(sources: Sequence[Source]) -> int:
    has_tars = any(one.kind == "webdataset" for one in sources)
    return _MAX_TAR_ROWS if has_tars else MAX_ROWS


def _changes(job: JobConfig, output: Output) -> CheckResult:
    num_rows = output.num_rows * (job.part.of if job.part else 1)  # all parts are listed
    if num_rows > _max_rows(job.sources):
        return _not_checked("what changed in the sources since the plan", "tokpipe plan says it")
    plan = StoredPlan.of(output.record, output.state.growth)
    found = SourceChanges.of_output(job, output.store, plan)
    if found.text:
        since = f"since the output was planned: {found.text}. {HOW_TO_EXTEND}"
        return _warning(since, **asdict(found))
    return CheckResult("changes", "  sources are as they were planned", asdict(found))


def _output(
    job: JobConfig, weights: TokenizerWeights | None, extend: bool
) -> Iterator[CheckResult]:
    uri = job.output.uri
    store = Store(uri, job.storage)
    try:
        existing = Output(store)
    except NotFound:
        text, facts = f"output {uri}: new", {"uri": uri, "is_new": True}
    else:
        if weights is None or not find_spec("av"):
            yield _not_checked(f"whether {uri} has the settings of this job", "see above")
        else:
            decoders, growth = decoder_versions(job.decode, job.has_pictures), existing.state.growth
            wanted = store, existing.record, job, weights.hash, decoders, growth
            job_record.check_same(uri, *job_record.compared(*wanted, extends=extend))
        done, rows = existing.state.committed.num_done, existing.num_rows
        text = f"output {uri}: {done:,} of {rows:,} plan rows settled"
        facts = {"uri": uri, "is_new": False, "num_rows": rows, "num_rows_done": done}
        yield _changes(job, existing)
        if done == rows:
            yield CheckResult("output", text, facts)
            return
    try:
        probe_store(store)
    except UnsafeStore as error:
        if not job.output.accept_unsafe_store:
            raise
        yield _warning(str(error))
    yield CheckResult("output", f"{text}; can be written", facts)
