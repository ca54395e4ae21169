"""What a run has cost in seconds of actors."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokpipe.types import STAGES, Stage


@dataclass
class Usage:
    """Seconds that actors existed for."""

    up_s: dict[Stage, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    encoders_paid_s: float = 0.0
    """Seconds that encode actors held their share of a node, from their placement on."""

    def goodput(self, useful_s: float) -> float | None:
        """Share of the encoders' seconds that these are; None before there are any."""
        return min(1.0, useful_s / self.encoders_paid_s) if self.encoders_paid_s > 0 else None
