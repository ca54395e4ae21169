"""What a run has done and cost so far."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tokpipe.runtime.dispatch.protocol import NodeId
from tokpipe.telemetry.speed import ACTIVITIES, Activity
from tokpipe.types import Stage


@dataclass(slots=True)
class Progress:
    """Counts for people, of this run alone. Work that has to be done again is taken off."""

    extra_clips: int = 0
    """Clips beyond one per plan row, found as sources turned out to need cutting."""
    opened: int = 0
    """Plan rows of which it is known by now how many clips they are."""
    decoded: int = 0
    encoded: int = 0
    committed: int = 0
    useful_s: float = 0.0
    """Seconds of encoders that went into committed codes."""
    lost_s: float = 0.0
    """Seconds of encoders whose codes were lost before they were committed."""
    spent: dict[Activity, float] = field(default_factory=lambda: dict.fromkeys(ACTIVITIES, 0.0))
    """Seconds of actors by what they went into, whatever became of it."""
    marked: Counter[str] = field(default_factory=Counter)
    """Encoded clips by mark."""
    lost_actors: Counter[Stage] = field(default_factory=Counter)
    """Actors that were up and died, or had to be killed."""
    lost_nodes: set[NodeId] = field(default_factory=set)
    """Nodes that went with actors which were up."""
    retried: Counter[Stage] = field(default_factory=Counter)
    """Times that a clip was given again on its own account, by stage."""
    download_bytes: int = 0
    """Bytes of sources that decoders have fetched, or found on local disk."""
    refused: Counter[Stage] = field(default_factory=Counter)
    """Rejected clips, committed or not, by the stage that they did not get past."""

    def passed(self, stage: Stage) -> int:
        """Clips that a stage is done with: they went on, or will never come to it."""
        if stage == "decode":
            return self.decoded + self.refused["decode"]
        went_on = self.encoded if stage == "encode" else self.committed
        return went_on + self.refused["decode"] + self.refused["encode"]
