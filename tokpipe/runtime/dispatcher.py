"""Who works on what: a pure state machine.

``handle(event, now)`` takes one event and returns the commands that follow. No ray, no clock,
no I/O in here: the Ray shell and the simulation drive the same object. What it promises:

- Every planned clip ends in exactly one commit, tokenized or rejected, whatever actors do, as
  long as some actor of each stage makes progress.
- An answer counts only while its attempt is in flight, so a zombie's work is never used.
- A clip is blamed for a lost or failing worker only when it was there alone. After
  ``max_attempts`` such losses it is rejected, alone. A clip that a stage gives up by itself
  (``Failed``) is tried again after a pause, as often.
- A node that is about to go, or has trouble of its own, is given nothing new, and blames nobody.
- What is in flight is bounded by credits, whatever the size of the plan.

Clips that are streamed in pieces have a state of their own, ``films``; their leases go the same
way as all others.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush
from typing import Literal

from tokpipe.config.job import RuntimeConfig
from tokpipe.runtime.films import Film, Films
from tokpipe.runtime.pools import Need, PoolSizes, size_pools
from tokpipe.runtime.protocol import (
    Abort,
    ActorId,
    ActorLost,
    ActorPlaced,
    ActorRefused,
    ActorUp,
    AttemptId,
    Capacity,
    Command,
    Commit,
    Committed,
    DecodedInfo,
    DecodeLease,
    Dispatch,
    Draining,
    EncodedClips,
    EncodedInfo,
    EncodeLease,
    Event,
    FetchPlan,
    Finish,
    Info,
    KillActor,
    Lease,
    LeaseDone,
    LeaseFailed,
    NodeId,
    Note,
    Pick,
    Planned,
    Release,
    ReleaseState,
    StartActor,
    StopRequested,
    Tick,
    WriteLease,
)
from tokpipe.telemetry.logs import EventName
from tokpipe.telemetry.speed import ACTIVITIES, Activity
from tokpipe.types import STAGES, ClipRef, Failed, Receipt, Rejected, Stage, WorkItem

SLOTS = {"decode": 2, "encode": 2, "write": 1}
"""Leases that an actor of each stage holds at a time: the second waits for the first to end, so
that nobody idles for the time of a round trip."""
SQUEEZE_AFTER_S = 20.0
"""A stage without any actor waits this long for room before it asks for none."""
MAX_REFUSALS = 3
"""Actors of one stage whose set-up raises, in a row, before the job is given up."""
MAX_LOST_STARTING = 10
"""The same for actors that die while they start, which a node short of memory may do to them."""
MAX_PAUSE_S = 60.0
MAX_FAULTS = 30
"""Leases that fail or take down their workers in a row, with none done in between, before the
job is given up: the fault is then not the clips'."""
RETRY_PAUSE_S = 5.0
"""Before a clip that a stage gave up is tried again; four times as long each time."""
MAX_NODE_TROUBLES = 10
"""Times in a row that actors of a stage have trouble of their nodes, with no lease done in between,
before the job is given up: then it is no single node."""
NODE_REST_S = 30.0
"""How long a node with trouble is avoided; twice as long each time."""
REJECTED_PER_COMMIT = 1000
"""Rejections that are committed without waiting for a shard."""
LEASE_S = 1.0
"""Clips that take less than this together travel in larger leases, so that what each lease costs
(about a millisecond of the driver) stays a small part of it."""
NEED_LEASES = 8
"""Leases of each stage from which it is concluded how long clips take."""
NEED_CLIPS = 2000
"""Clips over which the average goes, older ones counting ever less."""
RESIZE_EVERY_S = 30.0
"""How often pools are divided anew because of what was measured."""
SHARDS_AHEAD = 4
"""Shards per write actor that may wait before encoders have to: codes are small, but not nothing.
"""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the dispatcher needs to know of the job."""

    runtime: RuntimeConfig
    on_gpu: bool
    clips_per_lease: int
    """The most that a lease holds."""
    shard_bytes: int
    shard_max_age_s: float
    bytes_per_code: float
    """Expected size of one code in a shard."""
    usual_clips: int = 8
    """Clips of a lease before it is known how long they take, and the fewest after."""


@dataclass(slots=True)
class _Actor:
    stage: Stage
    since: float
    is_squeezed: bool = False
    """It asked for no room, so that there is nothing it could still wait for."""
    placed: bool = False
    node: NodeId | None = None
    """Known once it is placed."""
    up: bool = False
    is_leaving: bool = False
    """Its node is about to go: it finishes what it holds, and does not count any more."""
    leases: deque[AttemptId] = field(default_factory=deque)
    head_since: float = 0.0
    """When its first lease got to the front, which is when its deadline started."""


@dataclass(slots=True)
class _Flight:
    lease: Lease
    actor: ActorId
    held_s: float = 0.0
    """How long it was its actor's first, once it is back."""


@dataclass(slots=True)
class _CutSource:
    """Segments of a cut source that are still to be leased."""

    item: WorkItem
    next: int
    total: int


@dataclass(slots=True)
class _OpenShard:
    """Encoded clips of one grid that wait for a shard."""

    since: float
    num_codes: int = 0
    parts: list[EncodedClips] = field(default_factory=list)
    is_endangered: bool = False
    """Some of its codes are on a node that is about to go."""


@dataclass(slots=True)
class _NodeTrouble:
    """A node whose own trouble kept an actor from working."""

    count: int = 0
    avoid_until: float = 0.0


@dataclass(slots=True)
class _Pace:
    """How long clips take an actor of one stage."""

    leases: int = 0
    clips: float = 0.0
    seconds: float = 0.0

    def add(self, clips: int, seconds: float) -> None:
        self.leases += 1
        self.clips += clips
        self.seconds += seconds
        if self.clips > NEED_CLIPS:
            self.clips /= 2
            self.seconds /= 2

    @property
    def clip_s(self) -> float:
        return self.seconds / max(1.0, self.clips)


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


class Dispatcher:
    """See the module. ``ref_of`` names the clip of an item that is rejected unseen."""

    def __init__(self, limits: Limits, ref_of: Callable[[WorkItem], ClipRef]) -> None:
        self.limits = limits
        self.ref_of = ref_of
        self.progress = Progress()
        self.actors: dict[ActorId, _Actor] = {}
        self._idle: dict[Stage, dict[ActorId, None]] = {stage: {} for stage in STAGES}
        """Actors that are up and hold no lease, longest idle first."""
        self._spare: dict[Stage, dict[ActorId, None]] = {stage: {} for stage in STAGES}
        """Actors that hold a lease and have a slot for the next."""
        self._count: Counter[Stage] = Counter()
        self._up: Counter[Stage] = Counter()
        self._num_sharing: Counter[Stage] = Counter()
        """Actors that asked for no room."""
        self._sizes: PoolSizes | None = None
        self._capacity: Capacity | None = None
        self._pace: dict[Stage, _Pace] = {stage: _Pace() for stage in STAGES}
        self._resize_after = 0.0
        self._refusals: Counter[Stage] = Counter()
        self._lost_starting: Counter[Stage] = Counter()
        self._start_after: dict[Stage, float] = {}
        self._without_actor_since: dict[Stage, float] = {}
        self._leaving: set[ActorId] = set()
        self._draining: frozenset[NodeId] = frozenset()
        self._node_troubles: dict[NodeId, _NodeTrouble] = {}
        self._troubles_in_a_row: Counter[Stage] = Counter()

        self._flights: dict[AttemptId, _Flight] = {}
        self._in_flight: Counter[Stage] = Counter()
        self._todo: deque[WorkItem] = deque()
        self._cut_sources: deque[_CutSource] = deque()
        self._films = Films()
        self._suspects: dict[Stage, deque[Lease]] = {stage: deque() for stage in STAGES}
        """Leases to be run alone on an actor, because the last one to hold them was lost."""
        self._later: list[tuple[float, int, DecodeLease | EncodeLease]] = []
        """A heap of leases of one clip that a stage gave up, by when to try again."""
        self._decoded: deque[EncodeLease] = deque()
        self._open: dict[tuple[int, int], _OpenShard] = {}
        self._shards: deque[WriteLease] = deque()
        self._strikes: Counter[tuple[int, int]] = Counter()
        self._store_strikes: Counter[tuple[int, int]] = Counter()
        self._faults = 0
        self._unread: Counter[AttemptId] = Counter()
        """Clips of each kept output that nobody has used up yet."""

        self._plan_asked = False
        self._plan_exhausted = False
        self._receipts: list[Receipt] = []
        self._useful_s = 0.0
        """Encoder seconds behind the receipts."""
        self._lost_s = 0.0
        self._rejected: list[Rejected] = []
        self._rejected_since: float | None = None
        self._committing = False
        self._encode_until: float | None = None
        """Set when the job is asked to stop."""
        self._end_by = 0.0
        self._over = False
        self._last_id = 0

    # --- the one way in -------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take one event at time ``now`` (seconds, monotonic); return what must be done."""
        if self._over:
            return []
        commands = list(self._react(event, now))
        if not self._over:
            commands.extend(self._advance(now))
        return commands

    @property
    def knows_of_draining(self) -> bool:
        """Whether the last notice named any node."""
        return bool(self._draining)

    def num_up(self, stage: Stage) -> int:
        """Actors of a stage that take leases."""
        return self._up[stage]

    def _react(self, event: Event, now: float) -> Iterator[Command]:
        if isinstance(event, Tick):
            yield from self._check_deadlines(now)
        elif isinstance(event, LeaseDone):
            yield from self._lease_done(event, now)
        elif isinstance(event, LeaseFailed):
            yield from self._lease_failed(event, now)
        elif isinstance(event, Planned):
            self._plan_asked = False
            self._plan_exhausted = event.exhausted
            self._todo.extend(event.items)
        elif isinstance(event, Capacity):
            yield from self._resize(event, now)
        elif isinstance(event, ActorPlaced):
            if (actor := self.actors.get(event.actor)) is not None:
                actor.placed, actor.node = True, event.node
                if event.node in self._draining:
                    self._leave(event.actor)
        elif isinstance(event, Draining):
            yield from self._drain(event.nodes)
        elif isinstance(event, ActorUp):
            yield from self._actor_up(event.actor)
        elif isinstance(event, ActorLost):
            yield from self._actor_lost(event, now)
        elif isinstance(event, ActorRefused):
            yield from self._actor_refused(event, now)
        elif isinstance(event, Committed):
            self._committing = False
        elif isinstance(event, StopRequested):
            yield Note("stop_requested", "stopping", {"grace_s": event.grace_s})
            self._encode_until = now + event.grace_s
            self._end_by = now + 2 * event.grace_s

    # --- actors ---------------------------------------------------------------------------------

    def _resize(self, capacity: Capacity, now: float) -> Iterator[Command]:
        """Divide the cluster anew: at once if it has changed, else now and then."""
        if capacity == self._capacity and now < self._resize_after:
            return
        need = self._need()
        if need is not None:
            self._resize_after = now + RESIZE_EVERY_S
        self._capacity = capacity
        before = self._sizes
        self._sizes = size_pools(
            capacity,
            self.limits.runtime,
            on_gpu=self.limits.on_gpu,
            need=need,
            num_decoders=None if before is None else before.decode,
        )
        if self._sizes != before:
            wanted = {stage: self._sizes.of(stage) for stage in STAGES}
            yield Note(
                "pools_resized",
                ", ".join(f"{number} {stage}" for stage, number in wanted.items()),
                {"actors": wanted, "cpus": capacity.cpus, "gpus": capacity.gpus},
            )

    def _need(self) -> Need | None:
        """How long clips take each stage, once enough of them were seen."""
        decode, encode = self._pace["decode"], self._pace["encode"]
        if min(decode.leases, encode.leases) < NEED_LEASES:
            return None
        return Need(decode.clip_s, encode.clip_s)

    @property
    def _lease_clips(self) -> int:
        """Clips to put into a lease."""
        most = self.limits.clips_per_lease
        usual = min(self.limits.usual_clips, most)
        if usual == most or (need := self._need()) is None:
            return usual
        in_time = LEASE_S / max(need.decode_s, need.encode_s, 1e-9)
        return max(usual, min(most, int(in_time)))

    def _actor_up(self, actor_id: ActorId) -> Iterator[Command]:
        actor = self.actors.get(actor_id)
        if actor is not None and not actor.up and not actor.is_leaving:
            actor.placed = actor.up = True
            self._up[actor.stage] += 1
            self._refusals[actor.stage] = self._lost_starting[actor.stage] = 0
            self._start_after.pop(actor.stage, None)
            self._without_actor_since.pop(actor.stage, None)
            self._shelve(actor_id)
            yield _about("actor_up", actor_id, actor, "is up")

    def _shelve(self, actor_id: ActorId, *, alone: bool = False) -> None:
        """Put an actor where those are looked for that have as much room as it has."""
        actor = self.actors[actor_id]
        self._idle[actor.stage].pop(actor_id, None)
        self._spare[actor.stage].pop(actor_id, None)
        if actor.is_leaving:
            return
        if not actor.leases:
            self._idle[actor.stage][actor_id] = None
        elif not alone and len(actor.leases) < SLOTS[actor.stage]:
            self._spare[actor.stage][actor_id] = None

    def _actor_lost(self, event: ActorLost, now: float) -> Iterator[Command]:
        actor = self.actors.get(event.actor)
        if actor is None:
            return
        started = actor.up
        self.progress.lost_actors[actor.stage] += started
        if started and event.node_lost and actor.node is not None:
            self.progress.lost_nodes.add(actor.node)
        whose = " with its node" if event.node_lost else ""
        yield _about(
            "actor_lost",
            event.actor,
            actor,
            f"was lost{whose}: {event.message}",
            reason=event.message,
            node_lost=event.node_lost,
        )
        yield from self._drop_actor(event.actor, now, blame=not event.node_lost, why=event.message)
        if not started and not event.node_lost:
            self._lost_starting[actor.stage] += 1
            yield from self._could_not_start(actor.stage, event.message, now)

    def _actor_refused(self, event: ActorRefused, now: float) -> Iterator[Command]:
        actor = self.actors.get(event.actor)
        if actor is not None:
            yield _about(
                "actor_refused",
                event.actor,
                actor,
                f"did not start: {event.message}",
                reason=event.message,
            )
            yield from self._drop_actor(event.actor, now, blame=False, why=event.message, kill=True)
            if event.is_node_trouble:
                yield from self._note_trouble(actor, event.message, now)
                return
            self._refusals[actor.stage] += 1
            yield from self._could_not_start(actor.stage, event.message, now)

    def _could_not_start(self, stage: Stage, message: str, now: float) -> Iterator[Command]:
        refusals, lost = self._refusals[stage], self._lost_starting[stage]
        if refusals >= MAX_REFUSALS or lost >= MAX_LOST_STARTING:
            yield self._abort(
                "runtime",
                f"{stage} actors: {refusals + lost} in a row did not start, the last because: "
                f"{message}. Without them no clip can be finished. What is committed stays; "
                "mend the cause and run the job again.",
            )
        else:
            self._start_after[stage] = now + min(MAX_PAUSE_S, 2.0 ** (refusals + lost))

    def _note_trouble(self, actor: _Actor, message: str, now: float) -> Iterator[Command]:
        """A node's own trouble cost an actor: keep away from it for a while."""
        stage = actor.stage
        if actor.node is not None:
            trouble = self._node_troubles.setdefault(actor.node, _NodeTrouble())
            rest_s = NODE_REST_S * 2**trouble.count
            trouble.avoid_until = now + rest_s
            trouble.count += 1
            yield Note(
                "node_avoided",
                f"node {actor.node[:12]} is avoided for {rest_s:g} s: {message}",
                {"node": actor.node, "stage": stage, "reason": message, "rest_s": rest_s},
                is_warning=True,
            )
        self._troubles_in_a_row[stage] += 1
        self._start_after[stage] = now + min(MAX_PAUSE_S, 1.5 ** self._troubles_in_a_row[stage])
        if self._troubles_in_a_row[stage] >= MAX_NODE_TROUBLES:
            yield self._abort(
                "runtime",
                f"{stage} actors: {MAX_NODE_TROUBLES} times in a row their nodes had trouble of "
                f"their own, the last time because: {message}. Nothing can be finished so, and no "
                "clip is to blame. What is committed stays; mend the nodes and run the job again.",
            )

    def _drain(self, nodes: frozenset[NodeId]) -> Iterator[Command]:
        """Have done with nodes that are about to go: what they hold will be lost."""
        news = nodes - self._draining
        self._draining = nodes
        for actor_id, actor in self.actors.items():
            if actor.node in nodes:
                self._leave(actor_id)
        if news:  # nobody knows where the codes of an open shard are
            yield Note(
                "nodes_draining",
                f"{len(news)} nodes are about to be taken away",
                {"nodes": sorted(news)},
                is_warning=True,
            )
            for grid in list(self._open):
                self._close_shard(grid)

    def _leave(self, actor_id: ActorId) -> None:
        """Give an actor nothing new; it is let go once it holds nothing, and replaced at once."""
        actor = self.actors[actor_id]
        if actor.is_leaving:
            return
        actor.is_leaving = True
        self._leaving.add(actor_id)
        self._discount(actor)
        self._shelve(actor_id)

    def _discount(self, actor: _Actor) -> None:
        self._count[actor.stage] -= 1
        self._up[actor.stage] -= actor.up
        self._num_sharing[actor.stage] -= actor.is_squeezed

    def _endanger(self, attempt: AttemptId) -> None:
        """An output is on a node that is about to go: write what codes of it there are."""
        for shard in self._open.values():
            picks = (pick for part in shard.parts for pick in part.picks)
            shard.is_endangered |= any(pick.source == attempt for pick in picks)

    def _drop_actor(
        self, actor_id: ActorId, now: float, *, blame: bool, why: str, kill: bool = False
    ) -> Iterator[Command]:
        """Forget an actor; its leases are given again. Only the one at work can be to blame."""
        actor = self.actors.pop(actor_id)
        if actor.is_leaving:
            self._leaving.discard(actor_id)
        else:
            self._discount(actor)
        if actor.stage == "encode" and actor.leases:
            self._lose_seconds(now - actor.head_since)
        self._idle[actor.stage].pop(actor_id, None)
        self._spare[actor.stage].pop(actor_id, None)
        if kill:
            yield KillActor(actor_id)
        for position, attempt in enumerate(actor.leases):
            flight = self._flights.pop(attempt)
            self._in_flight[actor.stage] -= 1
            yield Release(attempt)
            if blame and position == 0:
                yield from self._suspect(flight.lease, "worker_lost", why, now)
            else:
                self._give_again(flight.lease)

    def _check_deadlines(self, now: float) -> Iterator[Command]:
        runtime = self.limits.runtime
        deadlines = {stage: getattr(runtime, stage).lease_deadline_s for stage in STAGES}
        for actor_id, actor in list(self.actors.items()):
            deadline_s = deadlines[actor.stage]
            if actor.leases and now - actor.head_since > deadline_s:
                why = f"its {actor.stage} worker gave no answer for {deadline_s:g} s"
                self.progress.lost_actors[actor.stage] += 1
                yield _about(
                    "actor_lost",
                    actor_id,
                    actor,
                    f"was killed: {why}",
                    reason=why,
                    node_lost=False,
                )
                yield from self._drop_actor(actor_id, now, blame=True, why=why, kill=True)
            elif not actor.up and now - actor.since > runtime.start_timeout_s:
                why = f"it was not ready after {runtime.start_timeout_s:g} s"
                yield _about("actor_refused", actor_id, actor, f"is given up: {why}", reason=why)
                yield from self._drop_actor(actor_id, now, blame=False, why="", kill=True)
            if self._over:
                return

    # --- leases that come back ------------------------------------------------------------------

    def _land(self, attempt: AttemptId, now: float) -> _Flight | None:
        """Take an attempt out of the air; None for one that was given up before."""
        flight = self._flights.pop(attempt, None)
        if flight is None:
            return None
        stage = flight.lease.stage
        self._in_flight[stage] -= 1
        actor = self.actors[flight.actor]
        if actor.leases[0] == attempt:
            flight.held_s = now - actor.head_since
        actor.leases.remove(attempt)
        actor.head_since = now
        self._shelve(flight.actor)
        return flight

    def _lease_done(self, event: LeaseDone, now: float) -> Iterator[Command]:
        flight = self._land(event.attempt, now)
        if flight is None:
            yield Release(event.attempt)
            return
        lease, answer = flight.lease, event.answer
        self._spend(event, flight)
        self._troubles_in_a_row[lease.stage] = 0
        self._store_strikes.pop(_key(lease), None)
        if isinstance(lease, WriteLease):
            assert isinstance(answer, Receipt)
            self._faults = 0
            self._receipts.append(answer)
            self._useful_s += lease.encode_s
            self._strikes.pop(_key(lease), None)
            for pick in lease.picks:
                yield from self._used_up(pick)
            for item in lease.items:
                self._strikes.pop((item.row, item.segment), None)
            return
        assert isinstance(answer, tuple)
        assert len(answer) == len(lease.items)
        if all(isinstance(one, Failed) for one in answer):
            assert isinstance(answer[0], Failed)
            yield from self._came_to_nothing(lease, answer[0].message)
            if self._over:
                return
        else:
            self._faults = 0
        if lease.film is not None:
            yield from self._piece_done(event, lease, answer[0], now)
        elif isinstance(lease, DecodeLease):
            yield from self._decoded_lease(event.attempt, lease, answer, now)
        else:
            yield from self._encoded_lease(event, lease, answer, now)
        if flight.actor in self._leaving:
            self._endanger(event.attempt)

    def _spend(self, event: LeaseDone, flight: _Flight) -> None:
        """Note where an actor's seconds went."""
        stage, busy_s = flight.lease.stage, event.busy_s
        self._pace[stage].add(len(flight.lease.items), busy_s)
        spent = self.progress.spent
        spent[stage] += busy_s - event.download_s
        spent["download"] += event.download_s
        self.progress.download_bytes += event.download_bytes
        if stage == "encode":  # it had a lease, and did not compute
            spent["transfer"] += max(0.0, flight.held_s - busy_s)

    def _decoded_lease(
        self,
        attempt: AttemptId,
        lease: DecodeLease,
        answer: tuple[Info, ...],
        now: float,
    ) -> Iterator[Command]:
        items: list[WorkItem] = []
        positions: list[int] = []
        num_films = 0
        for position, (item, result) in enumerate(zip(lease.items, answer, strict=True)):
            total = result.ref.num_segments
            self.progress.opened += item.num_segments is None and not isinstance(result, Failed)
            if item.num_segments is None and total > 1:
                # The source turned out to be a film: its other segments become work too.
                item = replace(item, num_segments=total)
                self._cut_sources.append(_CutSource(item, 1, total))
                self.progress.extra_clips += total - 1
            if isinstance(result, Rejected):
                self._reject(result, now)
                continue
            if isinstance(result, Failed):
                yield from self._try_later(DecodeLease((item,)), result, now)
                continue
            assert isinstance(result, DecodedInfo)
            if result.num_pieces > 1:
                pixels = Pick(attempt, (position,))
                self._films.start(self._new_id(), item, result.num_pieces, pixels)
                num_films += 1
                continue
            items.append(item)
            positions.append(position)
            self.progress.decoded += 1
        if items:
            self._decoded.append(EncodeLease(tuple(items), Pick(attempt, tuple(positions))))
        if items or num_films:
            self._unread[attempt] = len(items) + num_films
        else:
            yield Release(attempt)

    def _encoded_lease(
        self,
        event: LeaseDone,
        lease: EncodeLease,
        answer: tuple[Info, ...],
        now: float,
    ) -> Iterator[Command]:
        attempt = event.attempt
        used: list[int] = []
        by_grid: dict[tuple[int, int], list[tuple[int, WorkItem, EncodedInfo]]] = {}
        for position, (item, result) in enumerate(zip(lease.items, answer, strict=True)):
            if isinstance(result, Failed):  # its pixels are still needed
                pixels = Pick(lease.pick.source, (lease.pick.positions[position],))
                yield from self._try_later(EncodeLease((item,), pixels), result, now)
                continue
            used.append(lease.pick.positions[position])
            if isinstance(result, Rejected):
                self._reject(result, now)
                continue
            assert isinstance(result, EncodedInfo)
            by_grid.setdefault(result.grid, []).append((position, item, result))
            self.progress.encoded += 1
            self.progress.marked.update(result.marks)
        yield from self._used_up(Pick(lease.pick.source, tuple(used)))
        num_codes = sum(info.num_codes for clips in by_grid.values() for _, _, info in clips)
        if not by_grid:
            yield Release(attempt)
            return
        self._unread[attempt] = sum(len(clips) for clips in by_grid.values())
        for grid, clips in by_grid.items():
            pick = Pick(attempt, tuple(position for position, _, _ in clips))
            in_part = sum(info.num_codes for _, _, info in clips)
            encode_s = event.busy_s * in_part / max(1, num_codes)
            part = EncodedClips(tuple(item for _, item, _ in clips), (pick,), encode_s)
            self._into_shard(part, grid, in_part, now)

    def _piece_done(
        self,
        event: LeaseDone,
        lease: DecodeLease | EncodeLease,
        result: Info,
        now: float,
    ) -> Iterator[Command]:
        attempt, film = event.attempt, self._films.of(lease)
        if film is None:  # it ended while this was in flight
            yield Release(attempt)
        elif isinstance(result, Rejected):
            yield Release(attempt)
            yield from self._end_film(film)
            self._reject_film(result, now)
        elif isinstance(result, Failed):
            yield Release(attempt)
            yield from self._try_later(lease, result, now)
        elif isinstance(result, DecodedInfo):
            self._unread[attempt] = 1
            self._films.decoded(film, lease.items[0].piece, Pick(attempt, (0,)))
            self.progress.decoded += film.is_decoded
        else:
            self._unread[attempt] = 1
            pixels, state = self._films.encoded(film, attempt, result, event.busy_s)
            yield from self._used_up(pixels)
            if state is not None:
                yield ReleaseState(state)
            if film.is_encoded:
                self._films.end(film)
                self.progress.encoded += 1
                self._into_shard(film.result, result.grid, film.num_codes, now)

    def _end_film(self, film: Film) -> Iterator[Command]:
        """Let go of all that a film has so far. Leases that it has in flight are moot."""
        self._films.end(film)
        self.progress.decoded -= film.is_decoded
        self._lose_seconds(film.encode_s)
        self._later = [one for one in self._later if one[2].film != film.film_id]
        heapify(self._later)
        for stage, leases in self._suspects.items():
            kept = (
                one for one in leases if isinstance(one, WriteLease) or one.film != film.film_id
            )
            self._suspects[stage] = deque(kept)
        for pick in film.held:
            yield from self._used_up(pick)

    def _is_moot(self, lease: Lease) -> bool:
        """Whether a lease is part of a film that has ended."""
        return (
            not isinstance(lease, WriteLease)
            and lease.film is not None
            and self._films.of(lease) is None
        )

    def _lease_failed(self, event: LeaseFailed, now: float) -> Iterator[Command]:
        flight = self._flights.get(event.attempt)
        if flight is None:
            return
        lease, actor_id = flight.lease, flight.actor
        self._land(event.attempt, now)
        clips = len(lease.items)
        yield Note(
            "lease_failed",
            f"{lease.stage}: a lease of {clips} clips failed ({event.kind}): {event.message}",
            {
                "stage": lease.stage,
                "actor": actor_id,
                "kind": event.kind,
                "reason": event.message,
                "num_clips": clips,
            },
            is_warning=event.kind != "inputs_lost",  # which follows from the loss of a node
        )
        yield Release(event.attempt)
        if event.kind == "inputs_lost":
            assert not isinstance(lease, DecodeLease)
            yield from self._decode_again(lease, frozenset(event.lost))
        elif event.kind == "node":
            actor = self.actors[actor_id]
            yield from self._drop_actor(actor_id, now, blame=False, why=event.message, kill=True)
            self._give_again(lease)
            yield from self._note_trouble(actor, event.message, now)
        elif event.kind == "storage":
            # Counted apart: trouble with a store must never add up to a rejection.
            self._store_strikes[_key(lease)] += 1
            if self._store_strikes[_key(lease)] >= self.limits.runtime.max_attempts:
                yield self._abort("storage", event.message)
            else:
                self._give_again(lease)
        else:
            # An exception can leave a device or a library unusable: such a worker is replaced.
            yield from self._drop_actor(actor_id, now, blame=False, why=event.message, kill=True)
            yield from self._suspect(lease, "fault", event.message, now)

    def _decode_again(
        self, lease: EncodeLease | WriteLease, lost: frozenset[AttemptId]
    ) -> Iterator[Command]:
        """Pixels, codes or a state vanished with the node that held them: start from the source."""
        if isinstance(lease, EncodeLease) and lease.film is not None:
            film = self._films.of(lease)
            if film is not None:
                yield from self._end_film(film)
                self._todo.appendleft(film.item)
            return
        if isinstance(lease, EncodeLease):
            self._todo.extendleft(reversed(lease.items))
            self.progress.decoded -= len(lease.items)
            yield from self._used_up(lease.pick)
            return
        kept: list[EncodedClips] = []
        for part in lease.parts:
            if any(pick.source in lost for pick in part.picks):
                self._todo.extendleft(reversed(part.items))
                self.progress.decoded -= len(part.items)
                self.progress.encoded -= len(part.items)
                self._lose_seconds(part.encode_s)
                for pick in part.picks:
                    yield from self._used_up(pick)
            else:
                kept.append(part)
        if kept:
            self._shards.appendleft(replace(lease, parts=tuple(kept)))

    def _give_again(self, lease: Lease) -> None:
        if isinstance(lease, WriteLease):
            self._shards.appendleft(lease)
        elif lease.film is not None:
            film = self._films.of(lease)
            if film is not None:
                self._films.take_back(film, lease)
        elif isinstance(lease, DecodeLease):
            self._todo.extendleft(reversed(lease.items))
        else:
            self._decoded.appendleft(lease)

    def _suspect(self, lease: Lease, reason: str, why: str, now: float) -> Iterator[Command]:
        """A worker went down with this lease: narrow it down to one clip, then count."""
        if self._is_moot(lease):
            return
        yield from self._came_to_nothing(lease, why)
        if self._over:
            return
        if isinstance(lease, WriteLease):
            strikes = self._strike(_key(lease))
            if strikes >= self.limits.runtime.max_attempts:
                yield self._abort(
                    "runtime",
                    f"a shard of {len(lease.items)} clips took down its write worker {strikes} "
                    f"times, the last time because: {why}. What is committed stays; if memory ran "
                    "out, lower output.shard_bytes, then run the job again.",
                )
            else:
                self._suspects["write"].append(lease)
        elif len(lease.items) > 1:
            self._suspects[lease.stage].extend(_alone(lease))
        else:
            (item,) = lease.items
            strikes = self._strike(_key(lease))
            if strikes < self.limits.runtime.max_attempts:
                yield self._again(self.ref_of(item), lease.stage, reason, why, strikes)
                self._suspects[lease.stage].append(lease)
                return
            rejected = Rejected(
                ref=self.ref_of(item),
                stage=lease.stage,
                reason=reason,
                message=f"gave up after {strikes} attempts alone: {why}",
                attempts=strikes,
            )
            yield from self._give_up(lease, rejected, now)

    def _came_to_nothing(self, lease: Lease, why: str) -> Iterator[Command]:
        """Count leases of which nothing came; too many in a row are not the clips' fault."""
        self._faults += 1
        if self._faults >= MAX_FAULTS:
            yield self._abort(
                "runtime",
                f"{lease.stage}: {MAX_FAULTS} leases in a row came to nothing, the last because: "
                f"{why}. So many are not the clips' fault. What is committed stays; mend the "
                "cause (a worker that is only slow needs a longer "
                f"runtime.{lease.stage}.lease_deadline_s), then run the job again.",
            )

    def _try_later(
        self, lease: DecodeLease | EncodeLease, failed: Failed, now: float
    ) -> Iterator[Command]:
        """A stage gave up a clip, whose neighbours went on: try it again, after a pause."""
        strikes = self._strike(_key(lease))
        if strikes < self.limits.runtime.max_attempts:
            due = now + RETRY_PAUSE_S * 4 ** (strikes - 1)
            yield self._again(failed.ref, lease.stage, failed.reason, failed.message, strikes)
            heappush(self._later, (due, self._new_id(), lease))
            return
        rejected = Rejected(
            ref=failed.ref,
            stage=lease.stage,
            reason=failed.reason,
            message=failed.message,
            backend=failed.backend,
            attempts=strikes,
            error=failed.error,
        )
        yield from self._give_up(lease, rejected, now)

    def _again(self, ref: ClipRef, stage: Stage, reason: str, why: str, attempts: int) -> Note:
        self.progress.retried[stage] += 1
        return Note(
            "clip_retried",
            f"{stage}: {ref.source_uri} will be tried again: {why}",
            {
                "clip_id": ref.clip_id,
                "source_uri": ref.source_uri,
                "stage": stage,
                "reason": reason,
                "attempts": attempts,
            },
        )

    def _give_up(
        self, lease: DecodeLease | EncodeLease, rejected: Rejected, now: float
    ) -> Iterator[Command]:
        """Reject the one clip of a lease that will not be given again."""
        if (film := self._films.of(lease)) is not None:
            yield from self._end_film(film)
            self._reject_film(rejected, now)
            return
        if isinstance(lease, EncodeLease):
            yield from self._used_up(lease.pick)
        self._reject(rejected, now)

    def _lose_seconds(self, seconds: float) -> None:
        self._lost_s += seconds
        self.progress.lost_s += seconds

    def _strike(self, key: tuple[int, int]) -> int:
        self._strikes[key] += 1
        return self._strikes[key]

    def _reject(self, rejected: Rejected, now: float) -> None:
        if self._rejected_since is None:
            self._rejected_since = now
        self._rejected.append(rejected)
        self.progress.refused["encode" if rejected.stage == "encode" else "decode"] += 1
        self._strikes.pop((rejected.ref.row, rejected.ref.segment), None)

    def _reject_film(self, rejected: Rejected, now: float) -> None:
        # What the encode stage refuses counts as decoded, though not all pieces may have been.
        self.progress.decoded += rejected.stage == "encode"
        self._reject(rejected, now)

    def _used_up(self, pick: Pick) -> Iterator[Command]:
        """Count an output's clips down; release it with the last."""
        if not pick.positions:
            return
        self._unread[pick.source] -= len(pick.positions)
        if self._unread[pick.source] == 0:
            del self._unread[pick.source]
            yield Release(pick.source)

    def _abort(self, kind: Literal["storage", "runtime"], message: str) -> Abort:
        self._over = True
        return Abort(kind, message)

    # --- what follows from the state ------------------------------------------------------------

    def _advance(self, now: float) -> Iterator[Command]:
        for actor_id in sorted(self._leaving):
            if not self.actors[actor_id].leases:
                yield from self._drop_actor(actor_id, now, blame=False, why="", kill=True)
        yield from self._follow_capacity(now)
        if self._encode_until is None:
            yield from self._ask_for_plan()
            self._films.admit(self._up["encode"])
            self._take_up_again(now)
            yield from self._lease_decodes(now)
            yield from self._lease_encodes(now)
        self._close_due_shards(now)
        yield from self._lease_queue("write", self._shards, now)
        yield from self._commit_due(now)
        yield from self._finish_if_over(now)

    def _follow_capacity(self, now: float) -> Iterator[Command]:
        if self._sizes is None or self._encode_until is not None:
            return
        for stage in STAGES:
            target = self._sizes.of(stage)
            if self._up[stage] == 0:
                since = self._without_actor_since.setdefault(stage, now)
                if now - since > SQUEEZE_AFTER_S:
                    self._without_actor_since[stage] = now
                    yield from self._squeeze_in(stage, now)
            if self._count[stage] > target:
                yield from self._shed_actors(stage, self._count[stage] - target, now)
            if now >= self._start_after.get(stage, 0.0):
                while self._count[stage] < target:
                    shares = stage == "decode" and self._sizes.decode_shares
                    squeeze = shares and not self._num_sharing[stage]
                    yield self._start_actor(stage, now, squeeze=squeeze)

    def _start_actor(self, stage: Stage, now: float, *, squeeze: bool) -> StartActor:
        actor_id = self._new_id()
        self.actors[actor_id] = _Actor(stage, since=now, is_squeezed=squeeze)
        self._count[stage] += 1
        self._num_sharing[stage] += squeeze
        troubles = self._node_troubles.items()
        avoid = tuple(sorted(node for node, trouble in troubles if now < trouble.avoid_until))
        return StartActor(actor_id, stage, squeeze, avoid)

    def _squeeze_in(self, stage: Stage, now: float) -> Iterator[Command]:
        """None is up: if all wait for room, let one do without any set aside."""
        mine = self._staying(stage)
        if mine and not any(actor.placed or actor.is_squeezed for _, actor in mine):
            yield from self._drop_actor(mine[0][0], now, blame=False, why="", kill=True)
            yield self._start_actor(stage, now, squeeze=True)

    def _shed_actors(self, stage: Stage, number: int, now: float) -> Iterator[Command]:
        """Let go of the actors that cost least: not yet up, then idle, then the newest."""
        mine = self._staying(stage)
        mine.sort(key=lambda pair: (pair[1].up, len(pair[1].leases), -pair[0]))
        for actor_id, _ in mine[:number]:
            yield from self._drop_actor(actor_id, now, blame=False, why="", kill=True)

    def _staying(self, stage: Stage) -> list[tuple[ActorId, _Actor]]:
        return [
            (actor_id, actor)
            for actor_id, actor in self.actors.items()
            if actor.stage == stage and not actor.is_leaving
        ]

    def _take_up_again(self, now: float) -> None:
        """Give again what has paused. It took down no worker, so it need not be alone."""
        while self._later and self._later[0][0] <= now:
            _, _, lease = heappop(self._later)
            self._give_again(lease)

    def _ask_for_plan(self) -> Iterator[Command]:
        """Keep a few leases' worth of items at hand, and no more."""
        low = self._lease_clips * (2 * max(1, self._count["decode"]))
        if not self._plan_exhausted and not self._plan_asked and len(self._todo) < low:
            self._plan_asked = True
            yield FetchPlan(2 * low)

    def _lease_decodes(self, now: float) -> Iterator[Command]:
        # Credits: pixels that wait for an encoder, or are about to, stay few. A suspect needs
        # none, because there are never more of them than one lease had clips; nor do the later
        # pieces of films, of which each has few out.
        yield from self._lease_suspects("decode", now)
        yield from self._lease_pieces(now)
        waiting = len(self._decoded) + self._in_flight["decode"] + len(self._films.waiting)
        credits = 2 * max(1, self._up["encode"]) + self._up["decode"] - waiting
        while credits > 0 and self._has_room("decode") and (self._todo or self._cut_sources):
            yield self._dispatch(DecodeLease(tuple(self._next_items())), now)
            credits -= 1

    def _next_items(self) -> Iterator[WorkItem]:
        """Items of one decode lease: consecutive segments of one source, or single clips."""
        room = self._lease_clips
        if self._cut_sources:
            source = self._cut_sources[0]
            last = min(source.next + room, source.total)
            for segment in range(source.next, last):
                yield replace(source.item, segment=segment)
            source.next = last
            if source.next == source.total:
                self._cut_sources.popleft()
            return
        for _ in range(min(room, len(self._todo))):
            yield self._todo.popleft()

    def _lease_pieces(self, now: float) -> Iterator[Command]:
        """Let films at work have their next pieces decoded, by turns."""
        has_leased = True
        while has_leased and self._films.to_decode and self._has_room("decode"):
            has_leased = False
            for film in list(self._films.to_decode.values()):
                if (actor_id := self._seat(film, "decode")) is not None:
                    film.seats["decode"] = actor_id
                    yield self._dispatch(self._films.lease_decode(film), now, actor_id)
                    has_leased = True

    def _lease_encodes(self, now: float) -> Iterator[Command]:
        if len(self._shards) > SHARDS_AHEAD * self._count["write"]:
            return  # or codes would pile up in the object store while the output's store is slow
        yield from self._lease_suspects("encode", now)
        # Films first: the longest of them may be what the end of the job waits for.
        while self._films.to_encode and self._has_room("encode"):
            film = next(iter(self._films.to_encode.values()))
            actor_id = self._seat(film, "encode")
            assert actor_id is not None
            film.seats["encode"] = actor_id
            yield self._dispatch(self._films.lease_encode(film), now, actor_id)
        yield from self._lease_queue("encode", self._decoded, now)

    def _seat(self, film: Film, stage: Stage) -> ActorId | None:
        """The actor for a film's next piece: the one that had the last, if it has room, since it
        has the source file or is near the state. To fetch the file again costs more than to
        wait, unless there is an actor with nothing to do."""
        own = film.seats.get(stage)
        if own in self._idle[stage] or own in self._spare[stage]:
            return own
        if stage == "decode" and own in self.actors and not self._idle[stage]:
            return None
        return next(iter(self._idle[stage] or self._spare[stage]), None)

    def _lease_queue(
        self, stage: Stage, queue: deque[EncodeLease] | deque[WriteLease], now: float
    ) -> Iterator[Command]:
        yield from self._lease_suspects(stage, now)
        while queue and self._has_room(stage):
            yield self._dispatch(queue.popleft(), now)

    def _lease_suspects(self, stage: Stage, now: float) -> Iterator[Command]:
        suspects = self._suspects[stage]
        while suspects and self._idle[stage]:
            yield self._dispatch(suspects.popleft(), now, alone=True)

    def _has_room(self, stage: Stage) -> bool:
        """Whether an ordinary lease may go out. Not past waiting suspects: they need an actor that
        holds nothing, and none ever would if each were handed its next lease in time."""
        return not self._suspects[stage] and bool(self._idle[stage] or self._spare[stage])

    def _dispatch(
        self, lease: Lease, now: float, actor_id: ActorId | None = None, *, alone: bool = False
    ) -> Dispatch:
        if actor_id is None:
            actor_id = next(iter(self._idle[lease.stage] or self._spare[lease.stage]))
        actor = self.actors[actor_id]
        if not actor.leases:
            actor.head_since = now
        attempt = self._new_id()
        actor.leases.append(attempt)
        self._shelve(actor_id, alone=alone)
        self._flights[attempt] = _Flight(lease, actor_id)
        self._in_flight[lease.stage] += 1
        return Dispatch(attempt, actor_id, lease)

    def _into_shard(
        self, part: EncodedClips, grid: tuple[int, int], num_codes: int, now: float
    ) -> None:
        shard = self._open.setdefault(grid, _OpenShard(since=now))
        shard.parts.append(part)
        shard.num_codes += num_codes
        if shard.num_codes * self.limits.bytes_per_code >= self.limits.shard_bytes:
            self._close_shard(grid)

    def _close_shard(self, grid: tuple[int, int]) -> None:
        shard = self._open.pop(grid)
        self._shards.append(WriteLease(tuple(shard.parts), self._new_id()))

    def _close_due_shards(self, now: float) -> None:
        if self._encode_until is None:
            hurry = self._nothing_before_write()
        else:
            hurry = not self._in_flight["encode"] or now >= self._encode_until
        for grid, shard in list(self._open.items()):
            if hurry or shard.is_endangered or now - shard.since >= self.limits.shard_max_age_s:
                self._close_shard(grid)

    def _nothing_before_write(self) -> bool:
        return (
            self._plan_exhausted
            and not self._plan_asked
            and not self._todo
            and not self._cut_sources
            and not len(self._films)
            and not self._decoded
            and not self._later
            and not self._in_flight["decode"]
            and not self._in_flight["encode"]
            and not self._suspects["decode"]
            and not self._suspects["encode"]
        )

    def _writing(self) -> bool:
        return bool(
            self._open or self._shards or self._suspects["write"] or self._in_flight["write"]
        )

    def _commit_due(self, now: float) -> Iterator[Command]:
        if self._committing or not (self._receipts or self._rejected):
            return
        last = not self._writing() and (
            self._nothing_before_write() or self._encode_until is not None
        )
        since = self._rejected_since
        waited = since is not None and now - since >= self.limits.shard_max_age_s
        if self._receipts or last or waited or len(self._rejected) >= REJECTED_PER_COMMIT:
            receipts, rejected = tuple(self._receipts), tuple(self._rejected)
            self._receipts, self._rejected, self._rejected_since = [], [], None
            self._committing = True
            useful_s, lost_s = self._useful_s, self._lost_s
            self._useful_s = self._lost_s = 0.0
            self.progress.committed += sum(len(receipt.clips) for receipt in receipts)
            self.progress.useful_s += useful_s
            yield Commit(receipts, rejected, useful_s, lost_s)

    def _finish_if_over(self, now: float) -> Iterator[Command]:
        stopping = self._encode_until is not None
        if stopping and now >= self._end_by:
            self._over = True
            yield Finish("stopped")
        if self._over or self._committing or self._receipts or self._rejected or self._writing():
            return
        if self._nothing_before_write():
            self._over = True
            yield Finish("done")
        elif stopping and not self._in_flight["encode"]:
            self._over = True
            yield Finish("stopped")

    def _new_id(self) -> int:
        self._last_id += 1
        return self._last_id


def _about(event: EventName, actor_id: ActorId, actor: _Actor, what: str, **more: object) -> Note:
    """What happened to an actor; a warning unless it is good news."""
    fields = {"actor": actor_id, "stage": actor.stage, "node": actor.node, **more}
    message = f"{actor.stage} actor {actor_id} {what}"
    return Note(event, message, fields, is_warning=event != "actor_up")


def _alone(lease: DecodeLease | EncodeLease) -> Iterable[Lease]:
    """Split a lease into one lease per clip."""
    if isinstance(lease, DecodeLease):
        return [DecodeLease((item,)) for item in lease.items]
    pairs = zip(lease.items, lease.pick.positions, strict=True)
    return [EncodeLease((item,), Pick(lease.pick.source, (at,))) for item, at in pairs]


def _key(lease: Lease) -> tuple[int, int]:
    """What strikes are counted by: the shard, or the first clip."""
    if isinstance(lease, WriteLease):
        return -1, lease.lease_id
    return lease.items[0].row, lease.items[0].segment
