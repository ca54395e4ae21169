"""Writes a report as one HTML file. The style is inline, so it fetches nothing."""

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tokpipe.reader import Output
from tokpipe.report.facts import Pairs
from tokpipe.report.history import History, read_groups
from tokpipe.report.page import page
from tokpipe.storage.local_files import write_file
from tokpipe.telemetry.human import size_text
from tokpipe.verbs.inspect import Sample
from tokpipe.verbs.status import Status


class WrittenReport:
    """A report on an output, written as one HTML file. The file appears when it is complete.

    Reads the whole manifest (a sample of a long one), and fetches and verifies a sample of shards.
    If sources, weights or torch are missing or not trusted, the report says so. Memory grows with
    the number of shards, as that of ``output`` does, and with nothing else.
    """

    def __init__(
        self,
        output: Output,
        path: Path,
        *,
        num_shards: int = 8,
        num_pairs: int = 3,
        seed: int = 0,
        device: str = "auto",
        now: datetime | None = None,
    ) -> None:
        """Gather the facts and write them.

        Args:
            num_shards: number of shards in which to count codes and lengths; 0 for all.
            num_pairs: number of their clips to show, which ``seed`` selects; 0 for none.
        """
        now = now or datetime.now(UTC)
        self.path, self.output = path, output
        self.made_at = now.isoformat(timespec="seconds")  # ISO 8601, in UTC
        self.status = Status(output, now=now)
        self.history = History(read_groups(output))
        self.sample = Sample(output, num_shards=num_shards, num_clips=num_pairs, seed=seed)
        self.pairs = Pairs(output, self.sample.clips, device) if num_pairs else None
        self.max_bits_per_code = math.log2(output.tokenizer.codebook_size)
        """Entropy if all codes of the codebook were equally frequent."""
        worked_s, num_frames = self.history.worked_s, self.status.totals.num_frames
        self.frames_per_s = num_frames / worked_s if worked_s > 0 else None
        """Mean over the working time; None if that is unknown."""
        data = page(self).encode(errors="backslashreplace")
        write_file(path, data)
        self.size_bytes = len(data)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures of the report."""
        status, sample, pairs = self.status, self.sample, None
        totals, usage, speed = status.totals, sample.usage, self.history.whole.speed
        if self.pairs is not None:
            clips = [
                {
                    "clip_id": one.clip.clip_id,
                    "psnr_db": one.psnr_db,
                    "ssim": one.ssim,
                    "problem": one.problem,
                }
                for one in self.pairs.pairs
            ]
            pairs = {"problem": self.pairs.problem, "clips": clips}
        return {
            "file": self.path,
            "size_bytes": self.size_bytes,
            "bits_per_code": totals.bits_per_code,
            "frames_per_s": self.frames_per_s,
            "worked_s": self.history.worked_s,
            "num_drivers": len(self.history.starts_s),
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
        sample, pairs = self.sample, self.pairs
        yield f"{self.path}: report on {self.status.uri}, {size_text(self.size_bytes)}"
        shards = f"{sample.num_shards:,} of {sample.num_shards_of:,} shards"
        yield f"  codes and lengths were counted in {shards}"
        if incomplete := self.output.incomplete:
            yield f"  {incomplete}"
        for message in sample.damaged:
            yield f"  left out: {message}"
        if pairs is not None and pairs.problem is not None:
            yield f"  without pictures: {pairs.problem}"
        for pair in pairs.pairs if pairs else ():
            if pair.problem is not None:
                yield f"  without the source of clip {pair.clip.clip_id}: {pair.problem}"
