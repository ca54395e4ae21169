"""What a run has done and cost, as values that can be added and subtracted."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tokpipe.types import Stage


@dataclass(frozen=True, slots=True)
class Account:
    """Everything that is counted during a run, or a part of one. Work that must be repeated is
    subtracted again, so counts over a short time can be negative.

    ``a + b`` and ``a - b`` work field by field; a missing key counts as 0.
    """

    spent_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds of actors by activity (see ``speed``), whether or not the work was kept."""
    up_s: Mapping[str, float] = field(default_factory=dict)  # Seconds that actors were up, by stage
    paid_s: float = 0.0
    """Seconds that encode actors occupied their part of a node, since they were placed."""
    useful_s: float = 0.0  # Encoder seconds that produced committed codes
    slow_s: Mapping[str, float] = field(default_factory=dict)
    """Encoder seconds of work that could have been faster, by why, see ``EncoderPath``."""
    lost_s: float = 0.0  # Encoder seconds whose codes were lost before they were committed
    clips: Mapping[str, int] = field(default_factory=dict)
    """Clips that a stage has finished; for ``write``, committed clips."""
    rejected_at: Mapping[str, int] = field(default_factory=dict)
    """Rejected clips, committed or not, by the stage that rejected them."""
    num_opened: int = 0  # Plan rows whose number of clips is known
    num_extra_clips: int = 0
    """Clips beyond one per plan row, from sources that are cut into several clips."""
    rejected: Mapping[str, int] = field(default_factory=dict)  # Committed rejections by reason
    num_frames: int = 0  # Frames of committed clips; the same for codes, bytes and shards below
    num_codes: int = 0
    written_bytes: int = 0
    num_shards: int = 0
    num_commits: int = 0
    download_bytes: int = 0  # Bytes of sources that decoders fetched, or found on local disk
    marked: Mapping[str, int] = field(default_factory=dict)  # Encoded clips by mark
    retried: Mapping[str, int] = field(default_factory=dict)  # Retries of single clips, by stage
    lost_actors: Mapping[str, int] = field(default_factory=dict)
    """Actors that died, or were killed at a deadline, while they were up, by stage."""
    num_lost_nodes: int = 0  # Nodes that were lost while actors on them were up

    def __add__(self, other: "Account") -> "Account":
        return self._plus(other, 1)

    def __sub__(self, other: "Account") -> "Account":
        return self._plus(other, -1)

    def _plus(self, other: "Account", sign: int) -> "Account":
        pairs = ((getattr(self, name), getattr(other, name)) for name in self.__slots__)
        return Account(*(_summed(one, more, sign) for one, more in pairs))

    @property
    def goodput(self) -> float | None:
        """Fraction of encoder time that produced committed codes; None before there was any."""
        return min(1.0, self.useful_s / self.paid_s) if self.paid_s > 0 else None

    def passed(self, stage: Stage) -> int:
        """Return the clips that passed a stage, or were rejected before it or in it."""
        rejected = self.rejected_at.get("decode", 0)
        if stage != "decode":
            rejected += self.rejected_at.get("encode", 0)
        return self.clips.get(stage, 0) + rejected


def _summed(one: Any, more: Any, sign: int) -> Any:
    if isinstance(one, Mapping):
        return {key: one.get(key, 0) + sign * more.get(key, 0) for key in {**one, **more}}
    return one + sign * more
