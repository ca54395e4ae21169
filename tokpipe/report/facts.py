"""Everything that a report shows, gathered from an output."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import tokpipe
from tokpipe.formats.job_record import JobRecord
from tokpipe.reader import Output
from tokpipe.report.groups import read_groups
from tokpipe.report.history import History
from tokpipe.report.pairs import Pairs, make_pairs
from tokpipe.report.refusals import Refusal, Refusals
from tokpipe.report.sample import Sample, take_sample
from tokpipe.telemetry.speed import Speed
from tokpipe.verbs.status import Status, status_of


@dataclass(frozen=True, slots=True)
class Facts:
    """An output at one moment."""

    made_at: str
    """UTC, ISO 8601."""
    made_by: str
    """Version of tokpipe."""
    record: JobRecord
    status: Status
    num_entries: int
    num_read: int
    """Of them: what was made is exact, and when it was made lies between the times of these."""
    history: History
    refusals: list[Refusal]
    sample: Sample
    pairs: Pairs | None
    """None if none were asked for."""

    @property
    def bits_per_code(self) -> float | None:
        """Of everything that is stored; None before there are codes."""
        totals = self.status.totals
        return 8 * totals.size_bytes / totals.num_codes if totals.num_codes else None

    @property
    def bits_at_most(self) -> float:
        """Of a code that is drawn evenly from the codebook."""
        return math.log2(self.record.tokenizer.codebook_size)

    @property
    def rejected_share(self) -> float:
        totals = self.status.totals
        clips = totals.num_clips + totals.num_rejected
        return totals.num_rejected / clips if clips else 0.0

    @property
    def frames_per_s(self) -> float | None:
        """Mean over the time at work; None if that is not known."""
        worked_s = self.history.worked_s
        return self.status.totals.num_frames / worked_s if worked_s > 0 else None

    @property
    def speed(self) -> Speed | None:
        """Over all runs; None if the manifest does not tell."""
        return self.history.whole().speed

    def to_dict(self) -> dict[str, Any]:
        """The figures, for programs."""
        usage, speed = self.sample.usage, self.speed
        return {
            "bits_per_code": self.bits_per_code,
            "frames_per_s": self.frames_per_s,
            "worked_s": self.history.worked_s,
            "num_drivers": self.history.num_drivers,
            "speed_of_light": None if speed is None else speed.share,
            "limited_by": None if speed is None else speed.limit,
            "rejected": {one.reason: one.count for one in self.refusals},
            "sample": {
                "num_shards": self.sample.num_shards,
                "num_shards_of": self.sample.num_shards_of,
                "num_clips": self.sample.num_clips,
                "num_codes": usage.num_codes,
                "num_distinct": len(usage.codes),
                "entropy_bits": usage.entropy_bits,
                "perplexity": usage.perplexity if usage.num_codes else None,
                "damaged": self.sample.damaged,
            },
            "pairs": None
            if self.pairs is None
            else {
                "problem": self.pairs.problem,
                "clips": [
                    {
                        "clip_id": pair.clip.clip_id,
                        "psnr_db": _finite(pair.psnr_db),
                        "ssim": pair.ssim,
                        "problem": pair.problem,
                    }
                    for pair in self.pairs.pairs
                ],
            },
        }


def gather(
    output: Output,
    *,
    num_shards: int,
    num_pairs: int,
    seed: int,
    device: str,
    now: datetime | None = None,
) -> Facts:
    """Read the manifest once, a long one in part, and a sample of shards.

    Memory grows with the number of shards as that of ``output`` does, and with nothing else.

    Raises:
        CorruptOutput: the manifest is damaged.
    """
    now = now or datetime.now(UTC)
    status = status_of(output.store, output.record, output.state, now=now)
    history, refusals = History(), Refusals()
    num_read = 0
    for group in read_groups(output):
        num_read += 1
        history.add(group)
        refusals.add(group.entry)
    sample = take_sample(output, num_shards=num_shards, num_clips=num_pairs, seed=seed)
    return Facts(
        made_at=now.isoformat(timespec="seconds"),
        made_by=tokpipe.__version__,
        record=output.record,
        status=status,
        num_entries=output.state.next_seq,
        num_read=num_read,
        history=history,
        refusals=refusals.by_reason(status.totals.rejected),
        sample=sample,
        pairs=make_pairs(output, sample.clips, device) if num_pairs else None,
    )


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None
