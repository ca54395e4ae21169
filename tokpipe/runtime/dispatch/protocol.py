"""What goes into the dispatcher (limits, events) and what comes out (commands). Plain values.

An *actor* is a worker process of one stage. A *lease* is work for one actor. Each time a lease is
handed out is an *attempt* with a new id, so a late answer to an abandoned attempt is recognized
and ignored. The output of an attempt stays in the object store under its id until it is released.

A *streamed clip* is decoded and encoded in pieces; each piece continues from the state that
encoding the previous one left. Its leases carry its stream id, which changes when it restarts.
"""

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, Literal, NamedTuple

from tokpipe.config.job import RuntimeConfig
from tokpipe.telemetry.account import Account
from tokpipe.telemetry.logs import EventName
from tokpipe.types import STAGES, ClipRef, EncoderPath, Failed, Receipt, Rejected, Stage, WorkItem

ActorId = int
AttemptId = int
StreamId = int
NodeId = str
STATE, REUSED = 1, -1
STOP_GRACE_S = 30.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What the dispatcher needs to know about the job."""

    runtime: RuntimeConfig
    on_gpu: bool
    clips_per_lease: int  # The most clips in one lease
    shard_bytes: int
    shard_max_age_s: float
    bytes_per_code: float  # Expected size of one code in a shard
    usual_clips: int = 8  # Clips per lease until their duration is known, and the fewest afterwards
    frame_sizes: tuple[tuple[int, int], ...] = ((0, 0),)
    batch_chunks: int = 1
    plan_chunks: Callable[[int], Iterable[Any]] = lambda num_frames: ()  # Each a ``ChunkSpan``
    hardware: Literal["any", "same"] = "any"  # Encoder classes that the job admits
    encoders: frozenset[str] = frozenset()  # Those that the output's shards name
    max_rejected_fraction: float = 1.0
    num_clips: int = 0  # Known clips when the run starts; a row that was never opened counts as one
    num_unopened: int = 0  # Plan rows that were never opened
    rejected_before: Mapping[str, int] = field(default_factory=dict)  # By earlier runs, by reason


class Place(NamedTuple):
    """Where one clip or piece is: a position in the output of an attempt."""

    source: AttemptId
    at: int
    part: int = 0
    """Pixels have one for each size of frames, because encoders fetch whole parts. An encoder's
    codes are part 0, and its state part ``STATE``. Codes of another output are part ``REUSED``."""


class Clip(NamedTuple):
    """A clip on its way through the stages. If what is at its places is lost, it starts over."""

    item: WorkItem
    places: tuple[Place, ...] = ()  # Of its pixels or codes; of a streamed clip, piece by piece
    encode_s: float = 0.0  # Seconds that an encoder spent on it


class Lease(NamedTuple):
    """Work for one actor. Its clips may come from several outputs."""

    stage: Stage
    clips: tuple[Clip, ...]
    stream: StreamId | None = None  # Of a piece, which is the only clip; None for a first decode
    state: AttemptId | None = None  # The attempt on the previous piece, whose state it continues
    lease_id: int = 0  # Part of a shard's name, next to the attempt

    @property
    def items(self) -> tuple[WorkItem, ...]:
        return tuple(clip.item for clip in self.clips)

    @property
    def places(self) -> tuple[Place, ...]:
        return tuple(place for clip in self.clips for place in clip.places)


class DecodedInfo(NamedTuple):
    """One clip in the output of a decode attempt; the pixels stay in the object store."""

    ref: ClipRef
    num_frames: int
    num_pieces: int = 1  # More than one if this is a piece of a streamed clip
    part: int = 0  # Of the output, for its size of frames
    version: int | None = None  # Of the source that was decoded


class EncodedInfo(NamedTuple):
    """The same of an encode attempt, or of a decode attempt that found codes in another output."""

    ref: ClipRef
    grid: tuple[int, int]
    num_codes: int
    marks: tuple[str, ...] = ()
    version: int | None = None  # Of the source, if it is reused


Info = DecodedInfo | EncodedInfo | Rejected | Failed


@dataclass(frozen=True, slots=True)
class Room:
    """What one live node has."""

    cpus: float
    gpus: float = 0.0
    slots: Mapping[Stage, float] = field(default_factory=lambda: dict.fromkeys(STAGES, inf))
    """Actors of each stage that its kind, labels and custom resources admit."""


class Capacity(NamedTuple):
    """The live nodes of the cluster, without those that it is about to take away."""

    nodes: Mapping[NodeId, Room]
    draining: frozenset[NodeId] = frozenset()  # Those

    def nodes_for(self, *stages: Stage) -> list[NodeId]:
        """The nodes on which all of these stages may run."""
        return [id for id, one in self.nodes.items() if all(one.slots[s] for s in stages)]

    def of(self, *stages: Stage) -> tuple[float, float]:
        """CPUs and GPUs of those nodes together."""
        rooms = [self.nodes[node] for node in self.nodes_for(*stages)]
        return sum(one.cpus for one in rooms), sum(one.gpus for one in rooms)

    def most(self, stage: Stage) -> float:
        """Actors of a stage that all nodes admit, whatever CPUs and GPUs they have."""
        return sum(one.slots[stage] for one in self.nodes.values())

    def without(self, unfit: Mapping[Stage, Container[NodeId]]) -> "Capacity":
        """Leave out of each stage the nodes on which it cannot run."""
        rooms = {
            id: replace(one, slots={s: (id not in unfit[s]) and one.slots[s] for s in one.slots})
            for id, one in self.nodes.items()
        }
        return self._replace(nodes=rooms)


class ActorPlaced(NamedTuple):
    """The cluster found room for an actor; it is setting up."""

    actor: ActorId
    node: NodeId


class ActorUp(NamedTuple):
    """An actor is set up and takes leases. ``encoder``: its encoder class, if it is one."""

    actor: ActorId
    encoder: str | None = None
    path: EncoderPath | None = None


Loss = Literal["died", "node_died", "raised", "node_trouble", "node_unfit", "overdue"]


class ActorLost(NamedTuple):
    """An actor died, by itself or with its node; or its setup raised, because weights, packages or
    settings are wrong, its node has trouble, or has other packages than the job: it is unfit. One
    that misses the deadline of a lease, or is not up in time, is overdue."""

    actor: ActorId
    how: Loss
    message: str


class Planned(NamedTuple):
    """More of the plan, in answer to FetchPlan; ``exhausted`` when there is no more."""

    items: tuple[WorkItem, ...]
    exhausted: bool


class LeaseDone(NamedTuple):
    """A stage answered. Of ``busy_s`` seconds of work, ``download_s`` went into fetching."""

    attempt: AttemptId
    answer: tuple[Info, ...] | Receipt
    busy_s: float = 0.0
    download_s: float = 0.0
    download_bytes: int = 0
    path: EncoderPath | None = None  # Of an encoder, if it has changed


class LeaseFailed(NamedTuple):
    """A stage raised, or its inputs do not come; its actor lives. ``storage`` (a store failed) and
    ``node`` (such as a full disk) blame no clip. ``lost``: outputs to make again."""

    attempt: AttemptId
    kind: Literal["fault", "storage", "inputs_lost", "node"]
    message: str
    lost: tuple[AttemptId, ...] = ()


class Committed(NamedTuple):
    """The commit in flight is in the manifest."""


class StopRequested(NamedTuple):
    """Commit what is finished and end. Encoders get ``grace_s`` to finish, then writers too."""

    grace_s: float = STOP_GRACE_S


class Tick(NamedTuple):
    """Time has passed."""


Event = (
    Capacity | ActorPlaced | ActorUp | ActorLost
    | Planned | LeaseDone | LeaseFailed | Committed | StopRequested | Tick
)  # fmt: skip


class StartActor(NamedTuple):
    """Start an actor away from the nodes to ``avoid``. ``zero_cpu``: it requests no CPUs."""

    actor: ActorId
    stage: Stage
    zero_cpu: bool
    avoid: tuple[NodeId, ...] = ()


class KillActor(NamedTuple):
    actor: ActorId


class Dispatch(NamedTuple):
    """Have an actor work on a lease; answer with LeaseDone or LeaseFailed."""

    attempt: AttemptId
    actor: ActorId
    lease: Lease


class FindInputs(NamedTuple):
    """Answer with LeaseFailed if an encode attempt on ``node`` lacks inputs. It may have ended."""

    flight: Dispatch
    node: NodeId | None


class Release(NamedTuple):
    """The output of an attempt is no longer needed, or only a part of it."""

    attempt: AttemptId
    part: int | None = None


class FetchPlan(NamedTuple):
    """Answer with Planned, holding about this many items."""

    num_items: int


class Commit(NamedTuple):
    """Append to the manifest; answer with Committed. Only one at a time."""

    receipts: tuple[Receipt, ...]
    rejected: tuple[Rejected, ...]
    account: Account  # What the run did and spent since the previous commit, this one included


class Note(NamedTuple):
    """Log that something happened: ``message`` for people, ``fields`` for programs."""

    event: EventName
    message: str
    fields: Mapping[str, Any]
    is_warning: bool = False


class Finish(NamedTuple):
    """The job is over: ``done``, or ``stopped`` with work left."""

    outcome: Literal["done", "stopped"]
    why: str = ""  # Lines for people, if it stopped because of its rejections; empty if on request


class Abort(NamedTuple):
    """The job cannot continue. Committed work is kept."""

    kind: Literal["storage", "runtime", "config"]
    message: str


Command = (
    StartActor | KillActor | Dispatch | FindInputs | Release | FetchPlan
    | Commit | Note | Finish | Abort
)  # fmt: skip
