"""Everything that a report shows."""

import math
from dataclasses import dataclass
from typing import Any

from tokpipe.reader import Output
from tokpipe.report.history import History
from tokpipe.report.sample import Pairs, Sample
from tokpipe.verbs.status import Status


@dataclass(frozen=True, slots=True)
class Facts:
    """An output at one moment."""

    made_at: str  # ISO 8601, in UTC
    output: Output
    status: Status
    history: History
    sample: Sample
    pairs: Pairs | None  # None if none were requested

    @property
    def max_bits_per_code(self) -> float:
        """Entropy if all codes of the codebook were equally frequent."""
        return math.log2(self.output.tokenizer.codebook_size)

    @property
    def frames_per_s(self) -> float | None:
        """Mean over the working time; None if that is unknown."""
        worked_s = self.history.worked_s
        return self.status.totals.num_frames / worked_s if worked_s > 0 else None

    def to_dict(self) -> dict[str, Any]:
        """Return the figures of the report for programs."""
        usage, speed, pairs = self.sample.usage, self.history.whole.speed, self.pairs
        totals = self.status.totals
        return {
            "bits_per_code": totals.bits_per_code,
            "frames_per_s": self.frames_per_s,
            "worked_s": self.history.worked_s,
            "num_drivers": len(self.history.starts_s),
            "speed_of_light": None if speed is None else speed.share,
            "limited_by": None if speed is None else speed.limit,
            "rejected": dict(totals.rejected.most_common()),
            "sample": {
                "num_shards": self.sample.num_shards,
                "num_shards_of": self.sample.num_shards_of,
                "num_clips": self.sample.num_clips,
                "num_codes": usage.num_codes,
                "num_distinct": usage.num_used,
                "entropy_bits": usage.entropy_bits,
                "perplexity": usage.perplexity if usage.num_codes else None,
                "damaged": self.sample.damaged,
            },
            "pairs": None if pairs is None else pairs.to_dict(),
        }
