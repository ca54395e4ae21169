"""Writes a report as one HTML file. The style is inline, so it fetches nothing."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tokpipe.reader import Output
from tokpipe.report.facts import Facts, Pairs, Sample
from tokpipe.report.history import History, read_groups
from tokpipe.report.page import page
from tokpipe.storage.local_files import write_file
from tokpipe.telemetry.human import finite, size_text
from tokpipe.verbs.status import Status


@dataclass(frozen=True, slots=True)
class WrittenReport:
    """A report that ``write_report`` wrote."""

    path: Path
    size_bytes: int
    facts: Facts

    def to_dict(self) -> dict[str, Any]:
        """Return the figures of the report."""
        facts, status, sample, pairs = self.facts, self.facts.status, self.facts.sample, None
        totals, usage, speed = status.totals, sample.usage, facts.history.whole.speed
        if facts.pairs is not None:
            clips = [
                {
                    "clip_id": one.clip.clip_id,
                    "psnr_db": finite(one.psnr_db),
                    "ssim": one.ssim,
                    "problem": one.problem,
                }
                for one in facts.pairs.pairs
            ]
            pairs = {"problem": facts.pairs.problem, "clips": clips}
        return {
            "file": str(self.path),
            "size_bytes": self.size_bytes,
            "bits_per_code": totals.bits_per_code,
            "frames_per_s": facts.frames_per_s,
            "worked_s": facts.history.worked_s,
            "num_drivers": len(facts.history.starts_s),
            "speed_of_light": None if speed is None else speed.share,
            "limited_by": None if speed is None else speed.limit,
            "rejected": dict(totals.rejected.most_common()),
            "sample": {
                "num_shards": sample.num_shards,
                "num_shards_of": sample.num_shards_of,
                "num_clips": sample.num_clips,
                "num_codes": usage.num_codes,
                "num_distinct": usage.num_used,
                "entropy_bits": usage.entropy_bits,
                "perplexity": usage.perplexity if usage.num_codes else None,
                "damaged": sample.damaged,
            },
            "pairs": pairs,
            "status": status.to_dict(),
        }

    def lines(self) -> Iterator[str]:
        """Yield what was written, and what the report could not show."""
        sample, pairs = self.facts.sample, self.facts.pairs
        yield f"{self.path}: report on {self.facts.status.uri}, {size_text(self.size_bytes)}"
        shards = f"{sample.num_shards:,} of {sample.num_shards_of:,} shards"
        yield f"  codes and lengths were counted in {shards}"
        if incomplete := self.facts.output.incomplete:
            yield f"  {incomplete}"
        for message in sample.damaged:
            yield f"  left out: {message}"
        if pairs is not None and pairs.problem is not None:
            yield f"  without pictures: {pairs.problem}"
        for pair in pairs.pairs if pairs else ():
            if pair.problem is not None:
                yield f"  without the source of clip {pair.clip.clip_id}: {pair.problem}"


def write_report(
    output: Output,
    path: Path,
    *,
    num_shards: int = 8,
    num_pairs: int = 3,
    seed: int = 0,
    device: str = "auto",
    now: datetime | None = None,
) -> WrittenReport:
    """Write a report on an output to one HTML file. The file appears when it is complete.

    Reads the whole manifest (a sample of a long one), and fetches and verifies a sample of shards.
    If sources, weights or torch are missing or not trusted, the report says so. Memory grows with
    the number of shards, as that of ``output`` does, and with nothing else.

    Args:
        num_shards: number of shards in which to count codes and lengths; 0 for all.
        num_pairs: number of their clips to show, which ``seed`` selects; 0 for none.
    """
    now = now or datetime.now(UTC)
    sample = Sample(output, num_shards=num_shards, num_clips=num_pairs, seed=seed)
    facts = Facts(
        made_at=now.isoformat(timespec="seconds"),
        output=output,
        status=Status(output, now=now),
        history=History(read_groups(output)),
        sample=sample,
        pairs=Pairs(output, sample.clips, device) if num_pairs else None,
    )
    data = page(facts).encode(errors="backslashreplace")
    write_file(path, data)
    return WrittenReport(path, len(data), facts)
