"""``tokpipe plan``: what a job will give and cost, from the containers of a sample of its videos.

Rows are counted exactly. Of a random sample of them the sources are fetched and their containers
read; nothing is decoded, nothing is written to the output.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tokpipe.config import JobConfig
from tokpipe.config.job import StoreOptions
from tokpipe.errors import ConfigError, NotFound
from tokpipe.formats import job_record
from tokpipe.formats.manifest import Totals, load_state
from tokpipe.formats.shard import estimated_bytes
from tokpipe.media.decoder import Probe
from tokpipe.plan import PlanReader, write_plan
from tokpipe.stages.chunks import num_kept_latents, pieces_of, plan_chunks
from tokpipe.stages.decode import DecodeStage
from tokpipe.storage import open_store
from tokpipe.telemetry.human import counts_text, duration, size_text
from tokpipe.types import ChunkSpan, Failed, Rejected, WorkItem

_SURE = 1.96
"""Standard errors on either side that hold the truth 19 times of 20."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A sum over all rows, and by how much it may be off (19 times of 20)."""

    value: float
    margin: float

    def text(self) -> str:
        """``1,234,000 ±2%``; no margin where every row was looked at."""
        if not self.margin or not self.value:
            return f"{self.value:,.0f}"
        return f"{self.value:,.0f} ±{self.margin / self.value:.0%}"


@dataclass(frozen=True, slots=True)
class Speed:
    """What codes cost: of one encoder, and where that is known from."""

    codes_per_s: float
    bytes_per_code: float | None
    """None where only the speed was given."""
    source: str
    is_own: bool = False
    """Of the very job: it says nothing of how good a prediction by it is."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a job will give and cost."""

    dataset: str
    num_rows: int
    num_duplicates: int
    num_sampled: int
    clips: Estimate
    """Tokenized ones."""
    rejected: Estimate
    """As far as containers show it; videos that fail while they are decoded come on top."""
    reasons: dict[str, int]
    """Of rejections in the sample."""
    frames: Estimate
    """Resampled ones that codes will stand for."""
    chunks: Estimate
    codes: Estimate
    size_bytes: float
    """Of shards; without a measured figure, the most that codes take."""
    num_shards: int
    speed: Speed | None
    encoder_s: float | None
    """Seconds of encoders, one per GPU."""
    price_per_hour: float | None
    actual: Totals | None
    """What the output holds, if it is done."""

    @property
    def cost(self) -> float | None:
        """Money for encoders, at the given price of one for an hour."""
        if self.encoder_s is None or self.price_per_hour is None:
            return None
        return self.encoder_s / 3600 * self.price_per_hour

    def to_json(self) -> str:
        """All of it, on one line."""
        actual = None
        if (totals := self.actual) is not None:
            actual = {
                "num_clips": totals.num_clips,
                "num_rejected": totals.num_rejected,
                "num_frames": totals.num_frames,
                "num_codes": totals.num_codes,
                "size_bytes": totals.size_bytes,
                "num_shards": totals.num_shards,
                "encoder_s": totals.paid_s,
            }
        estimates = ("clips", "rejected", "frames", "chunks", "codes")
        return json.dumps(
            {
                "dataset": self.dataset,
                "num_rows": self.num_rows,
                "num_duplicates": self.num_duplicates,
                "num_sampled": self.num_sampled,
                **{name: asdict(getattr(self, name)) for name in estimates},
                "reasons": self.reasons,
                "size_bytes": self.size_bytes,
                "num_shards": self.num_shards,
                "speed": None if self.speed is None else asdict(self.speed),
                "encoder_s": self.encoder_s,
                "price_per_hour": self.price_per_hour,
                "cost": self.cost,
                "actual": actual,
            }
        )

    def lines(self) -> Iterator[str]:
        """The same for people."""
        left_out = f" ({self.num_duplicates:,} duplicates left out)" if self.num_duplicates else ""
        rows = f"{self.num_rows:,} plan rows{left_out}"
        yield f"{self.dataset}: {rows}; looked into {self.num_sampled:,}"
        yield (
            f"  {self.clips.text()} clips, {self.frames.text()} frames, {self.chunks.text()} "
            f"chunks, {self.codes.text()} codes"
        )
        reasons = counts_text(self.reasons)
        yield (
            f"  {self.rejected.text()} rejected{f' (in the sample: {reasons})' if reasons else ''}"
            "; damage that only decoding shows comes on top"
        )
        yield f"  {size_text(self.size_bytes)} in about {self.num_shards:,} shards"
        if self.speed is None or self.encoder_s is None:
            yield (
                "  how long it takes is not known: give --like OUT, an output of the same "
                "tokenizer and GPU, or --codes-per-s"
            )
        else:
            cost = (
                "" if self.cost is None else f", {self.cost:,.2f} at {self.price_per_hour:g} each"
            )
            yield (
                f"  {self.encoder_s / 3600:,.2f} encoder hours ({duration(self.encoder_s)} on one)"
                f"{cost}"
            )
            yield f"    at {self.speed.codes_per_s:,.0f} codes/s, {self.speed.source}"
        yield from self._outcome()

    def _outcome(self) -> Iterator[str]:
        if (totals := self.actual) is None:
            return
        yield "what the output holds now that the job is done, and the error of this prediction:"
        pairs: dict[str, tuple[float, float | None]] = {
            "clips": (totals.num_clips, self.clips.value),
            "rejected": (totals.num_rejected, self.rejected.value),
            "frames": (totals.num_frames, self.frames.value),
            "codes": (totals.num_codes, self.codes.value),
        }
        if self.speed is None or not self.speed.is_own:
            pairs["bytes"] = totals.size_bytes, self.size_bytes
            pairs["encoder seconds"] = totals.paid_s, self.encoder_s
        for name, (held, predicted) in pairs.items():
            if predicted is not None:
                error = f"{predicted / held - 1:+.1%}" if held else f"{predicted - held:+,.0f}"
                yield f"  {held:,.0f} {name} ({error})"


def forecast(
    job: JobConfig,
    *,
    num_sampled: int = 64,
    seed: int = 0,
    like: str | None = None,
    codes_per_s: float | None = None,
    price_per_hour: float | None = None,
) -> Forecast:
    """Plan a job, and look into some of its videos.

    Args:
        num_sampled: rows to fetch and look into; every one if there are no more.
        seed: decides which.
        like: an output whose speed and size per code will be those of the job. Left out, the job's
            own output, if there is one.
        codes_per_s: of one encoder; instead.
        price_per_hour: of one encoder.

    Raises:
        TokpipeError: what would keep the job from starting; no speed in ``like``.
    """
    with tempfile.TemporaryDirectory(prefix="tokpipe-plan-") as name:
        folder = Path(name)
        store = open_store(str(folder / "plan"), StoreOptions())
        stored = write_plan(job, store, "forecast")
        rows = np.random.default_rng(seed).permutation(stored.num_rows)[:num_sampled]
        items = _items(PlanReader(store, stored), np.sort(rows))
        yields = [_yield(job, found) for found in _probed(job, items, folder)]
    own, is_done = _totals(job.output.uri, job.storage)
    speed = _speed(job, own, like, codes_per_s)

    def total(name: str) -> Estimate:
        return _estimate([getattr(one, name) for one in yields], stored.num_rows)

    codes = total("codes")
    if speed is not None and speed.bytes_per_code is not None:
        size_bytes = codes.value * speed.bytes_per_code
    else:
        size = job.tokenizer.traits.codebook_size
        size_bytes = float(estimated_bytes(round(codes.value), size))
    return Forecast(
        dataset=job.dataset,
        num_rows=stored.num_rows,
        num_duplicates=stored.num_duplicates,
        num_sampled=len(yields),
        clips=total("clips"),
        rejected=total("rejected"),
        reasons=dict(Counter(one.reason for one in yields if one.reason).most_common()),
        frames=total("frames"),
        chunks=total("chunks"),
        codes=codes,
        size_bytes=size_bytes,
        num_shards=max(1, math.ceil(size_bytes / job.output.shard_bytes)),
        speed=speed,
        encoder_s=None if speed is None else codes.value / speed.codes_per_s,
        price_per_hour=price_per_hour,
        actual=own if is_done else None,
    )


@dataclass(frozen=True, slots=True)
class _Yield:
    """What one plan row gives."""

    clips: int = 0
    rejected: int = 0
    frames: int = 0
    chunks: int = 0
    codes: int = 0
    reason: str | None = None
    """Why it is rejected, or some of its clips are."""


def _items(reader: PlanReader, rows: NDArray[np.int64]) -> Iterator[WorkItem]:
    """The work items of some rows, which rise."""
    parts = np.array([reader.part_of(int(row)) for row in rows])
    for part in np.unique(parts):
        yield from reader.items(int(part), rows[parts == part])


def _probed(
    job: JobConfig, items: Iterator[WorkItem], folder: Path
) -> Iterator[Probe | Rejected | Failed]:
    stage = DecodeStage(job.sampling, job.frames, job.decode, job.storage, pieces_of(job))
    scratch = folder / "scratch"
    scratch.mkdir()
    stage.setup(scratch)
    try:
        for item in items:
            yield stage.probe(item)
    finally:
        stage.close()


def _yield(job: JobConfig, found: Probe | Rejected | Failed) -> _Yield:
    if not isinstance(found, Probe):
        return _Yield(rejected=1, reason=found.reason)
    traits = job.tokenizer.traits
    stride = traits.spatial_stride
    codes_per_latent = found.size[0] // stride * (found.size[1] // stride)
    most, least = job.sampling.max_clip_frames, job.sampling.min_clip_frames
    if (cut := pieces_of(job)) is not None:
        bounds = [cut.bounds(index) for index in range(found.num_segments)]
        pieces = [(first, min(last, found.num_frames) - first) for first, last in bounds]
        spans = [span for first, count in pieces for span in _chunks(job, count, first)]
        clips, short, frames = 1, 0, found.num_frames
    else:
        counts = [
            min(most, found.num_frames - segment * most) for segment in range(found.num_segments)
        ]
        kept = [count for count in counts if count >= least]
        spans = [span for count in kept for span in _chunks(job, count, 0)]
        clips, short, frames = len(kept), len(counts) - len(kept), sum(kept)
    return _Yield(
        clips=clips,
        rejected=short,
        frames=frames,
        chunks=len(spans),
        codes=codes_per_latent
        * sum(num_kept_latents(span, job.tokenizer.traits) for span in spans),
        reason="too_short" if short else None,
    )


def _chunks(job: JobConfig, num_frames: int, first_frame: int) -> tuple[ChunkSpan, ...]:
    return plan_chunks(num_frames, job.chunking, job.tokenizer.traits, first_frame=first_frame)


def _estimate(values: Sequence[int], num_rows: int) -> Estimate:
    """The sum over ``num_rows`` rows, of those that were sampled without putting any back."""
    sample = np.array(values, np.float64)
    if len(sample) == num_rows:
        return Estimate(float(sample.sum()), 0.0)
    spread = float(sample.std(ddof=1)) if len(sample) > 1 else float(sample.mean())
    unseen = 1 - len(sample) / num_rows
    error = num_rows * spread * math.sqrt(unseen / len(sample))
    return Estimate(float(sample.mean()) * num_rows, _SURE * error)


def _totals(uri: str, options: StoreOptions) -> tuple[Totals | None, bool]:
    """What an output holds, if there is one, and whether it is done."""
    store = open_store(uri, options)
    try:
        record = job_record.read(store)
    except NotFound:
        return None, False
    state = load_state(store, record.num_rows)
    return state.totals, state.committed.num_done == record.num_rows


def _speed(
    job: JobConfig, own: Totals | None, like: str | None, codes_per_s: float | None
) -> Speed | None:
    if codes_per_s is not None:
        return Speed(codes_per_s, None, "as given")
    uri = like or job.output.uri
    totals = own if like is None else _totals(like, job.storage)[0]
    if totals is not None and totals.paid_s > 0 and totals.num_codes:
        return Speed(
            totals.num_codes / totals.paid_s,
            totals.size_bytes / totals.num_codes,
            f"as one encoder made those of {uri}",
            is_own=like is None,
        )
    if like is not None:
        raise ConfigError(
            f"--like {like}: holds no codes whose cost is known. Give an output that a run has "
            "committed to, or --codes-per-s"
        )
    return None
