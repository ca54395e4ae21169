"""What the dispatcher is told (events) and what it orders (commands). Plain values, no ray.

An *actor* is one worker process of one stage. A *lease* is work that one actor holds. Every
handing out of a lease is an *attempt* with an id of its own: a late answer to an attempt that
was given up is recognised by its id, and ignored. The output of an attempt stays in the object
store under the attempt's id until it is released.

A *film* is a clip that is streamed: decoded and encoded in pieces, each from the state that
encoding the one before left. Its leases carry its id, which is new whenever it starts again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tokpipe.telemetry.logs import EventName
from tokpipe.types import ClipRef, Failed, Receipt, Rejected, Stage, Travels, WorkItem

ActorId = int
AttemptId = int
FilmId = int
NodeId = str


# --- what stages answer -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DecodedInfo(Travels):
    """One clip in the output of a decode attempt; the pixels stay in the object store."""

    ref: ClipRef
    num_frames: int
    num_pieces: int = 1
    """More than one for a streamed clip of which this is a piece."""


@dataclass(frozen=True, slots=True)
class EncodedInfo(Travels):
    """One clip in the output of an encode attempt; the codes stay in the object store."""

    ref: ClipRef
    grid: tuple[int, int]
    num_codes: int
    marks: tuple[str, ...] = ()


# --- leases -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pick:
    """Clips at ``positions`` in the output of attempt ``source``."""

    source: AttemptId
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DecodeLease:
    items: tuple[WorkItem, ...]
    film: FilmId | None = None
    """For a later piece of a film, which is then the only item."""
    stage: Stage = "decode"


@dataclass(frozen=True, slots=True)
class EncodeLease:
    items: tuple[WorkItem, ...]
    """The items behind the picked clips, in the same order: what to decode again if pixels are
    lost."""
    pick: Pick
    film: FilmId | None = None
    """For a piece of a film, which is then the only item."""
    state: AttemptId | None = None
    """The attempt that encoded the piece before, and left what this one goes on from."""
    stage: Stage = "encode"


@dataclass(frozen=True, slots=True)
class EncodedClips:
    """Clips whose codes stand and fall together: several in one output, or one film in the
    outputs of its pieces, in their order."""

    items: tuple[WorkItem, ...]
    picks: tuple[Pick, ...]
    encode_s: float = 0.0
    """Seconds that an encoder spent on them."""


@dataclass(frozen=True, slots=True)
class WriteLease:
    parts: tuple[EncodedClips, ...]
    lease_id: int
    """Stands in the shard's name, beside the attempt."""
    stage: Stage = "write"

    @property
    def items(self) -> tuple[WorkItem, ...]:
        return tuple(item for part in self.parts for item in part.items)

    @property
    def picks(self) -> tuple[Pick, ...]:
        return tuple(pick for part in self.parts for pick in part.picks)

    @property
    def encode_s(self) -> float:
        return sum(part.encode_s for part in self.parts)


Lease = DecodeLease | EncodeLease | WriteLease
Info = DecodedInfo | EncodedInfo | Rejected | Failed
Answer = (
    tuple[DecodedInfo | Rejected | Failed, ...]
    | tuple[EncodedInfo | Rejected | Failed, ...]
    | Receipt
)


# --- events -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the cluster's live nodes have in all."""

    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True)
class ActorPlaced:
    """The cluster found room for an actor; it is setting up."""

    actor: ActorId
    node: NodeId


@dataclass(frozen=True, slots=True)
class ActorUp:
    """An actor is set up and takes leases."""

    actor: ActorId


@dataclass(frozen=True, slots=True)
class ActorLost:
    """An actor died. ``node_lost``: with its whole node, so that no clip is to blame."""

    actor: ActorId
    node_lost: bool
    message: str


@dataclass(frozen=True, slots=True)
class ActorRefused:
    """An actor's set-up raised: weights, packages or settings are wrong, or its node is."""

    actor: ActorId
    message: str
    is_node_trouble: bool = False


@dataclass(frozen=True, slots=True)
class Draining:
    """The nodes that are known to be about to go, by notice of the cluster: all there are now."""

    nodes: frozenset[NodeId]


@dataclass(frozen=True, slots=True)
class Planned:
    """More of the plan, in answer to FetchPlan; ``exhausted`` when there is no more."""

    items: tuple[WorkItem, ...]
    exhausted: bool


@dataclass(frozen=True, slots=True)
class LeaseDone:
    attempt: AttemptId
    answer: Answer
    busy_s: float = 0.0
    """Seconds that the stage worked on it."""
    download_s: float = 0.0
    """Of these, those in which a decoder fetched sources."""
    download_bytes: int = 0


@dataclass(frozen=True, slots=True)
class LeaseFailed:
    """A stage raised; its actor lives. No clip is to blame for ``storage`` (a store kept failing)
    and ``node`` (a full disk, say)."""

    attempt: AttemptId
    kind: Literal["fault", "storage", "inputs_lost", "node"]
    message: str
    lost: tuple[AttemptId, ...] = ()
    """With ``inputs_lost``: the outputs that vanished with the node that held them."""


@dataclass(frozen=True, slots=True)
class Committed:
    """The commit in flight stands in the manifest."""


@dataclass(frozen=True, slots=True)
class StopRequested:
    """Commit what is finished and end: ``grace_s`` for encoders at work, as much for writers."""

    grace_s: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    Capacity
    | ActorPlaced
    | ActorUp
    | ActorLost
    | ActorRefused
    | Draining
    | Planned
    | LeaseDone
    | LeaseFailed
    | Committed
    | StopRequested
    | Tick
)


# --- commands -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartActor:
    """``squeeze``: ask for no CPU at all, since the stage has no actor and none fits."""

    actor: ActorId
    stage: Stage
    squeeze: bool
    avoid: tuple[NodeId, ...] = ()
    """Nodes on which actors of this stage had trouble of the node's own."""


@dataclass(frozen=True, slots=True)
class KillActor:
    actor: ActorId


@dataclass(frozen=True, slots=True)
class Dispatch:
    attempt: AttemptId
    actor: ActorId
    lease: Lease


@dataclass(frozen=True, slots=True)
class Release:
    """The output of an attempt is not needed any more, nor any state that it left."""

    attempt: AttemptId


@dataclass(frozen=True, slots=True)
class ReleaseState:
    """The state that encoding a piece left is not needed any more; the codes are."""

    attempt: AttemptId


@dataclass(frozen=True, slots=True)
class FetchPlan:
    """Answer with Planned, holding about this many items."""

    num_items: int


@dataclass(frozen=True, slots=True)
class Commit:
    """Append to the manifest; answer with Committed. Only one at a time."""

    receipts: tuple[Receipt, ...]
    rejected: tuple[Rejected, ...]
    useful_s: float = 0.0
    """Seconds that encoders spent on the receipts' codes."""
    lost_s: float = 0.0
    """Seconds of encoders that came to nothing since the commit before."""


@dataclass(frozen=True, slots=True)
class Note:
    """Tell what happened; nothing has to be done."""

    event: EventName
    message: str
    """For a person."""
    fields: Mapping[str, Any]
    """For a program."""
    is_warning: bool = False


@dataclass(frozen=True, slots=True)
class Finish:
    """The job is over: ``done``, or ``stopped`` on request with work left."""

    outcome: Literal["done", "stopped"]


@dataclass(frozen=True, slots=True)
class Abort:
    """The job cannot go on. What is committed stays."""

    kind: Literal["storage", "runtime"]
    message: str


Command = (
    StartActor
    | KillActor
    | Dispatch
    | Release
    | ReleaseState
    | FetchPlan
    | Commit
    | Note
    | Finish
    | Abort
)
