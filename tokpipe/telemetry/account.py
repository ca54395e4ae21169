"""What a run has done and cost, as values that can be added; how fast, and what limits it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from tokpipe.types import STAGES, Stage

Activity = Literal["download", "decode", "transfer", "encode", "write"]
ACTIVITIES: tuple[Activity, ...] = ("download", "decode", "transfer", "encode", "write")
"""What actors spend time on. In ``transfer``, an encoder waits for the data of its lease."""

OF_STAGE: Mapping[Stage, tuple[Activity, ...]] = {
    "decode": ("download", "decode"),
    "encode": ("transfer", "encode"),
    "write": ("write",),
}
NOUNS: Mapping[Activity, str] = {
    "download": "downloading", "decode": "decoding", "transfer": "moving frames",
    "encode": "encoding", "write": "writing",
}  # fmt: skip
_REMEDIES: Mapping[Activity, str] = {
    "download": "Use a store nearer to the nodes, or lower runtime.decode.cpus for more decoders",
    "decode": "Add CPUs, or lower runtime.decode.cpus if they were not all busy",
    "transfer": "Use a faster network, or fewer GPUs per node",
    "encode": "Only more or faster encoders help: add GPUs, or CPUs if it encodes on CPUs",
    "write": "Raise runtime.write.max_actors, or use a faster store",
}
AS_BUSY = 0.02  # Closer fractions are equal: encode is then the limit, as only encoders would help
IDLE = 0.5  # A stage that is busy for a smaller fraction of its time is not a limit


class Speed(NamedTuple):
    """How fast a job is, compared with its encoders by themselves."""

    share: float  # Fraction of encoder time in which encoders computed (0 to 1)
    limit: Activity | None  # What limits the job; None if no stage is busy, such as at the start
    limit_share: float  # Fraction of its time that the limiting stage was busy (0 to 1)

    @property
    def text(self) -> str:
        """One line: ``encoders busy 60%, limited by decoding (busy 98%)``."""
        if self.limit is None:
            why = ": no stage is busy enough to name a limit"
        elif self.limit == "encode":
            why = ": as fast as they can go"
        else:
            why = f", limited by {NOUNS[self.limit]} (busy {self.limit_share:.0%})"
        return f"encoders busy {self.share:.0%}{why}"

    @property
    def advice(self) -> str:
        """What limited a job, and what would make it faster."""
        return self.text if self.limit is None else f"{self.text}. {_REMEDIES[self.limit]}"


@dataclass(frozen=True, slots=True)
class Account:
    """What is counted during a run, or a part of one. ``+`` and ``-`` work field by field. Work
    that must be repeated is subtracted again, so counts over a short time can be negative."""

    spent_s: Mapping[str, float] = field(default_factory=dict)  # Of actors by activity, kept or not
    up_s: Mapping[str, float] = field(default_factory=dict)  # Seconds that actors were up, by stage
    paid_s: float = 0.0  # Seconds that encode actors occupied their part of a node, up or not
    useful_s: float = 0.0  # Encoder seconds that produced committed codes
    slow_s: Mapping[str, float] = field(default_factory=dict)  # Of encoders by ``EncoderPath.slow``
    lost_s: float = 0.0  # Encoder seconds whose codes were lost before they were committed
    clips: Mapping[str, int] = field(default_factory=dict)
    """Clips that a stage has finished; for ``write``, committed clips. ``reuse``: those for which
    the decode stage found codes in another output."""
    rejected_at: Mapping[str, int] = field(default_factory=dict)  # Clips by stage, committed or not
    num_opened: int = 0  # Plan rows whose number of clips is known
    num_extra_clips: int = 0  # Clips beyond one per plan row, from sources that are cut
    rejected: Mapping[str, int] = field(default_factory=dict)  # Committed rejections by reason
    num_frames: int = 0  # Frames of committed clips; the same for codes and bytes below
    num_codes: int = 0
    written_bytes: int = 0
    download_bytes: int = 0  # Bytes of sources that decoders fetched, or found on local disk
    marked: Mapping[str, int] = field(default_factory=dict)  # Encoded clips by mark
    lost_actors: Mapping[str, int] = field(default_factory=dict)
    """Actors that died, or were killed at a deadline, while they were up, by stage."""
    started: Mapping[str, int] = field(default_factory=dict)  # Actors that came up, by stage
    starting_s: Mapping[str, float] = field(default_factory=dict)  # What they took, once placed

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
        reused = self.clips.get("reuse", 0) if stage == "encode" else 0
        return self.clips.get(stage, 0) + reused + rejected

    @property
    def stage_seconds(self) -> dict[tuple[Stage, Activity], float]:
        """Seconds of each stage's actors by activity."""
        pairs = ((stage, of) for stage in STAGES for of in OF_STAGE[stage])
        return {(stage, of): self.spent_s.get(of, 0.0) for stage, of in pairs}

    @property
    def busy_shares(self) -> dict[Stage, float]:
        """Fraction of time (0 to 1) in which the actors of each stage were busy."""
        spent_s, up_s = self.spent_s, self.up_s
        busy = {stage: sum(spent_s.get(one, 0.0) for one in OF_STAGE[stage]) for stage in STAGES}
        up = {stage: up_s.get(stage, 0.0) for stage in STAGES}
        # A lease is counted when it ends, so part of it may be earlier.
        return {one: min(1.0, busy[one] / up[one]) if up[one] > 0 else 0.0 for one in STAGES}

    @property
    def speed(self) -> Speed | None:
        """None before any encoder is up. The limit is the longest activity of the busiest stage."""
        if self.up_s.get("encode", 0.0) <= 0:
            return None
        busy = self.busy_shares
        share = min(1.0, self.spent_s.get("encode", 0.0) / self.up_s["encode"])
        most = max(busy.values())
        if most < IDLE:
            return Speed(share, None, most)
        stage = max(STAGES, key=lambda one: busy[one])
        if busy["encode"] >= most - AS_BUSY:
            stage = "encode"
        limit = max(OF_STAGE[stage], key=lambda one: self.spent_s.get(one, 0.0))
        return Speed(share, limit, busy[stage])


def _summed(one: Any, more: Any, sign: int) -> Any:
    if isinstance(one, Mapping):
        return {key: one.get(key, 0) + sign * more.get(key, 0) for key in {**one, **more}}
    return one + sign * more
