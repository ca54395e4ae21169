"""``tokpipe plan``: what a job will produce and cost, by all its rows and a sample's containers."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Self

import numpy as np

from tokpipe.config import JobConfig
from tokpipe.errors import StorageError
from tokpipe.formats.shard import estimated_bytes
from tokpipe.media.decoder import Probe
from tokpipe.plan import PlanReader, StoredPlan
from tokpipe.plan.changes import SourceChanges, plan_now
from tokpipe.reader import Output
from tokpipe.stages.chunks import num_kept_latents, pieces_of, plan_chunks
from tokpipe.stages.decode import DecodeStage
from tokpipe.stages.fit import EncoderMemory
from tokpipe.stages.reuse import ReusedOutput, reused_outputs
from tokpipe.storage import Store
from tokpipe.telemetry.human import counted, counts_text, duration, share_text, size_text
from tokpipe.types import Cut, WorkItem

_STANDARD_ERRORS = 1.96  # Half the width of a 95 % confidence interval


@dataclass(frozen=True, slots=True)
class Estimate:
    """A sum over all rows, with the margin of error at 95 % confidence."""

    value: float
    margin: float

    @classmethod
    def of(cls, values: Sequence[int], num_rows: int) -> Self:
        """Estimate the sum over ``num_rows`` rows from a sample drawn without replacement."""
        sample = np.array(values, np.float64)
        if len(sample) == num_rows:
            return cls(float(sample.sum()), 0.0)
        mean = float(sample.mean())
        deviation = float(sample.std(ddof=1)) if len(sample) > 1 else mean
        error = num_rows * deviation * math.sqrt((1 - len(sample) / num_rows) / len(sample))
        return cls(mean * num_rows, _STANDARD_ERRORS * error)

    def text(self) -> str:
        """Return ``1,234,000 ±2%``, without the margin if every row was sampled."""
        if not self.margin or not self.value:
            return f"{self.value:,.0f}"
        return f"{self.value:,.0f} ±{self.margin / self.value:.0%}"


class Forecast:
    def __init__(
        self,
        job: JobConfig,
        *,
        num_sampled: int = 64,
        seed: int = 0,
        codes_per_s: float | None = None,
        price_per_hour: float | None = None,
    ) -> None:
        """``codes_per_s`` is the speed of one encoder, of which there is one per GPU, if known."""
        reasons = Counter[str]()
        self.source_changes: SourceChanges | None = None
        """Since the output was planned; None if there is none, or its store cannot be read."""
        with plan_now(job) as (store, plan):
            rows = np.random.default_rng(seed).permutation(plan.num_rows)[:num_sampled]
            items = PlanReader(store, plan, job.sources).items(np.sort(rows))
            pieces = pieces_of(job)
            with DecodeStage(job.sampling, job.frames, job.decode, job.storage, pieces) as stage:
                stage.reuses = [ReusedOutput(job, *one) for one in reused_outputs(job)]
                sample = [_amounts(job, item, stage, reasons) for item in items]
            with suppress(StorageError):
                there = Output(Store(job.output.uri, job.storage))
                before = there.store, StoredPlan.of(there.record, there.state.growth)
                self.source_changes, _ = SourceChanges.between(before, (store, plan))
        amounts = [Estimate.of(values, plan.num_rows) for values in zip(*sample, strict=True)]
        self.dataset = job.dataset
        self.num_rows, self.num_duplicates = plan.num_rows, plan.num_duplicates
        self.num_sampled = len(sample)
        self.clips, self.rejected = amounts[:2]  # Rejections that containers show
        self.reasons = dict(reasons.most_common())  # Of the rejections in the sample
        self.frames, self.chunks, self.codes = amounts[2:5]  # Frames after resampling
        self.reused = amounts[5]  # Clips that other outputs have
        num_codes, codebook_size = round(self.codes.value), job.tokenizer.traits.codebook_size
        self.size_bytes = estimated_bytes(num_codes, codebook_size)  # The most that codes can take
        self.num_shards = max(1, math.ceil(self.size_bytes / job.output.shard_bytes))
        self.codes_per_s, self.price_per_hour = codes_per_s, price_per_hour
        self.left_out = plan.left_out
        self.memory = [] if job.encode.device == "cpu" else [*EncoderMemory(job).by_size()]
        left = 1 - self.reused.value / max(1.0, self.clips.value)
        self.encoder_s = None if codes_per_s is None else left * self.codes.value / codes_per_s
        self.cost: float | None = None  # Of the encoders' time, if known
        if self.encoder_s is not None and price_per_hour is not None:
            self.cost = self.encoder_s / 3600 * price_per_hour

    def to_dict(self) -> dict[str, Any]:
        return vars(self)

    def lines(self) -> Iterator[str]:
        dropped = f" ({self.num_duplicates:,} duplicates dropped)" if self.num_duplicates else ""
        rows = counted(self.num_rows, "plan row")
        yield f"{self.dataset}: {rows}{dropped}; probed {self.num_sampled:,}"
        if left_out := self.left_out.text:
            yield f"  left out: {left_out}"
        if self.source_changes and (changes := self.source_changes.text):
            yield f"  since the output was planned: {changes}"
        sums = ("clips", "frames", "chunks", "codes")
        yield "  " + ", ".join(f"{getattr(self, one).text()} {one}" for one in sums)
        reasons = f" (in the sample: {counts_text(self.reasons)})" if self.reasons else ""
        yield f"  {self.rejected.text()} rejected{reasons}; decoding may reject more"
        if self.reused.value:
            share = share_text(self.reused.value / self.clips.value)
            yield f"  {self.reused.text()} clips ({share}) need no encoding (reuse), if the"
            yield "  weights and libraries there are this job's, which a run checks first"
        yield f"  {size_text(self.size_bytes)} in about {counted(self.num_shards, 'shard')}"
        yield from (f"  {one['text']}" for one in self.memory)
        if self.encoder_s is None:
            how = "pass --codes-per-s, which tokpipe status shows for the same tokenizer and GPU"
            yield f"  time unknown: {how}"
        else:
            hours, cost = f"{self.encoder_s / 3600:,.2f} encoder hours", self.cost
            price = "" if cost is None else f", {cost:,.2f} at {self.price_per_hour:g} per hour"
            yield f"  {hours} ({duration(self.encoder_s)} on one encoder){price}"


def _amounts(
    job: JobConfig, item: WorkItem, stage: DecodeStage, reasons: Counter[str]
) -> tuple[int, int, int, int, int, int]:
    """A row's clips, rejections, frames, chunks, codes and clips to reuse; adds to ``reasons``."""
    found = stage.probe(item)
    if not isinstance(found, Probe):
        reasons[found.reason] += 1
        return 0, 1, 0, 0, 0, 0
    traits, sampling, pieces = job.tokenizer.traits, job.sampling, pieces_of(job)
    cut = pieces or Cut(sampling.max_clip_frames, sampling.max_clip_frames)
    bounds = map(cut.bounds, range(found.num_segments))
    parts = [(start, min(stop, found.num_frames) - start) for start, stop in bounds]
    if pieces is None:  # each part is a clip, so its chunks count from its first frame
        least = 1 if found.is_picture else sampling.min_clip_frames
        parts = [(0, length) for _, length in parts if length >= least]
    if short := found.num_segments - len(parts):
        reasons["too_short"] += 1
    plans = (plan_chunks(number, job.chunking, traits, first_frame=one) for one, number in parts)
    spans = [*chain(*plans)]
    codes_per_latent = math.prod(traits.grid(*found.size))
    return (
        len(parts) if pieces is None else 1,
        short,
        sum(length for _, length in parts),
        len(spans),
        codes_per_latent * sum(num_kept_latents(span, traits) for span in spans),
        sum(stage.is_reused(replace(item, segment=n)) for n in range(found.num_segments)),
    )
