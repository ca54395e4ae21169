"""The actors: which exist, who has room for a lease, and when and where others may start."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from tokpipe.config.job import RuntimeConfig
from tokpipe.runtime.dispatch.account import Ledger
from tokpipe.runtime.dispatch.protocol import (
    Abort,
    ActorId,
    ActorLost,
    ActorPlaced,
    ActorRefused,
    AttemptId,
    Emit,
    KillActor,
    NodeId,
    Note,
    StartActor,
)
from tokpipe.telemetry.logs import EventName
from tokpipe.types import STAGES, Stage

SLOTS = {"decode": 2, "encode": 2, "write": 1}
"""Leases that an actor of each stage holds at a time: the second waits for the first to end, so
that no actor idles during a round trip."""
ZERO_CPU_AFTER_S = 20.0
"""A stage without any actor waits this long for capacity before it starts one with zero CPUs."""
MAX_REFUSALS = 3
"""Actors of one stage whose setup raises, in a row, before the job is given up."""
MAX_LOST_STARTING = 10
"""The same for actors that die while they start, as on a node that is short of memory."""
MAX_PAUSE_S = 60.0
MAX_NODE_TROUBLES = 10
"""Times in a row that nodes of a stage's actors have trouble, with no lease done in between, before
the job is given up: by then the cause is not a single node."""
NODE_REST_S = 30.0
"""How long a node with trouble is avoided; twice as long each time."""


@dataclass(slots=True)
class Actor:
    """One actor, from its start command until it is removed."""

    stage: Stage
    since: float
    zero_cpu: bool
    """It requested zero CPUs, so it is not waiting for capacity."""
    placed: bool = False
    node: NodeId | None = None
    """Known once it is placed."""
    up: bool = False
    is_leaving: bool = False
    """Its node is draining: it finishes what it holds, and no longer counts."""
    leases: deque[AttemptId] = field(default_factory=deque)
    head_since: float = 0.0
    """When its first lease got to the front, which is when its deadline started."""


class _Starts:
    """When and where actors may start, after others failed to or their nodes had trouble."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._after: dict[Stage, float] = {}
        self._refused: Counter[Stage] = Counter()
        self._died: Counter[Stage] = Counter()
        self._nodes: dict[NodeId, tuple[int, float]] = {}
        """How often each node had trouble, and until when it is avoided."""
        self._troubles_in_a_row: Counter[Stage] = Counter()

    def may_start(self, stage: Stage, now: float) -> bool:
        return now >= self._after.get(stage, 0.0)

    def nodes_to_avoid(self, now: float) -> tuple[NodeId, ...]:
        return tuple(sorted(node for node, (_, until) in self._nodes.items() if now < until))

    def came_up(self, stage: Stage) -> None:
        self._refused[stage] = self._died[stage] = 0
        self._after.pop(stage, None)

    def did_a_lease(self, stage: Stage) -> None:
        self._troubles_in_a_row[stage] = 0

    def failed(self, stage: Stage, message: str, now: float, *, refused: bool) -> None:
        """An actor did not start: pause before the next, or abort."""
        (self._refused if refused else self._died)[stage] += 1
        num_refused, num_died = self._refused[stage], self._died[stage]
        in_a_row = num_refused + num_died
        if num_refused < MAX_REFUSALS and num_died < MAX_LOST_STARTING:
            self._after[stage] = now + min(MAX_PAUSE_S, 2.0**in_a_row)
            return
        self._emit(
            Abort(
                "runtime",
                f"{stage} actors: {in_a_row} in a row did not start; the last error: {message}. "
                "Without them no clip can be finished. What is committed stays; fix the cause "
                "and run the job again.",
            )
        )

    def node_trouble(self, actor: Actor, message: str, now: float) -> None:
        """Trouble of its node cost an actor: avoid the node for a while, or abort."""
        stage, node = actor.stage, actor.node
        if node is not None:
            before, _ = self._nodes.get(node, (0, 0.0))
            rest_s = NODE_REST_S * 2**before
            self._nodes[node] = before + 1, now + rest_s
            text = f"node {node[:12]}: not used for {rest_s:g} s: {message}"
            fields = {"node": node, "stage": stage, "reason": message, "rest_s": rest_s}
            self._emit(Note("node_avoided", text, fields, is_warning=True))
        self._troubles_in_a_row[stage] += 1
        in_a_row = self._troubles_in_a_row[stage]
        self._after[stage] = now + min(MAX_PAUSE_S, 1.5**in_a_row)
        if in_a_row >= MAX_NODE_TROUBLES:
            self._emit(
                Abort(
                    "runtime",
                    f"{stage} actors failed {in_a_row} times in a row because of their nodes; the "
                    f"last error: {message}. No clip is to blame, and none can be finished. What "
                    "is committed stays; fix the nodes and run the job again.",
                )
            )


class Fleet:
    """Every actor, and who of them has room.

    What a removed actor held is the caller's to hand out again.
    """

    def __init__(
        self, config: RuntimeConfig, new_id: Iterator[int], ledger: Ledger, emit: Emit
    ) -> None:
        self.actors: dict[ActorId, Actor] = {}
        self._config = config
        self._new_id = new_id
        self._ledger = ledger
        self._emit = emit
        self._starts = _Starts(emit)
        self._idle: dict[Stage, dict[ActorId, None]] = {stage: {} for stage in STAGES}
        """Actors that are up and hold no lease, longest idle first."""
        self._spare: dict[Stage, dict[ActorId, None]] = {stage: {} for stage in STAGES}
        """Actors that hold a lease and have a slot for another."""
        self._num: Counter[Stage] = Counter()
        self._num_up: Counter[Stage] = Counter()
        self._num_zero_cpu: Counter[Stage] = Counter()
        self._num_placed: Counter[Stage] = Counter()
        """Actors that occupy resources, those that are leaving included; so too the next."""
        self._num_ready: Counter[Stage] = Counter()
        self._none_up_since: dict[Stage, float] = {}
        self._leaving: set[ActorId] = set()
        self._draining: frozenset[NodeId] = frozenset()
        self._lost_nodes: set[NodeId] = set()
        self._counted_until: float | None = None

    def num(self, stage: Stage) -> int:
        """Actors of a stage that are up or starting, without those that are leaving."""
        return self._num[stage]

    def num_up(self, stage: Stage) -> int:
        """Those of them that take leases."""
        return self._num_up[stage]

    @property
    def knows_of_draining(self) -> bool:
        """Whether the last notice named any node."""
        return bool(self._draining)

    # --- who has room ---------------------------------------------------------------------------

    def has_room(self, stage: Stage) -> bool:
        """Whether any actor has room for a lease."""
        return bool(self._idle[stage] or self._spare[stage])

    def has_idle(self, stage: Stage) -> bool:
        """Whether any actor holds nothing."""
        return bool(self._idle[stage])

    def actor_with_room(self, stage: Stage) -> ActorId | None:
        """The idle actor, or else the one that has had a free slot longest."""
        return next(iter(self._idle[stage] or self._spare[stage]), None)

    def same_actor(self, stage: Stage, last: ActorId | None) -> ActorId | None:
        """``last`` again if it has room, else another.

        A decoder that is busy is waited for while no other is idle: it has the source file, and
        fetching that again costs more than waiting.
        """
        if last in self._idle[stage] or last in self._spare[stage]:
            return last
        if stage == "decode" and last in self.actors and not self._idle[stage]:
            return None
        return self.actor_with_room(stage)

    def assign(self, actor_id: ActorId, attempt: AttemptId, now: float, *, alone: bool) -> None:
        """An actor gets a lease; ``alone``: and no other beside it."""
        actor = self.actors[actor_id]
        if not actor.leases:
            actor.head_since = now
        actor.leases.append(attempt)
        self._shelve(actor_id, alone=alone)

    def free(self, actor_id: ActorId, attempt: AttemptId, now: float) -> float:
        """An actor is done with a lease; return for how many seconds it was its first."""
        actor = self.actors[actor_id]
        held_s = now - actor.head_since if actor.leases[0] == attempt else 0.0
        actor.leases.remove(attempt)
        actor.head_since = now
        self._shelve(actor_id)
        return held_s

    def did_a_lease(self, stage: Stage) -> None:
        """An actor answered a lease, so its node works."""
        self._starts.did_a_lease(stage)

    def _shelve(self, actor_id: ActorId, *, alone: bool = False) -> None:
        """List an actor with those that have as much room."""
        actor = self.actors[actor_id]
        idle, spare = self._idle[actor.stage], self._spare[actor.stage]
        idle.pop(actor_id, None)
        spare.pop(actor_id, None)
        if actor.is_leaving:
            return
        if not actor.leases:
            idle[actor_id] = None
        elif not alone and len(actor.leases) < SLOTS[actor.stage]:
            spare[actor_id] = None

    # --- actors come ----------------------------------------------------------------------------

    def start(self, stage: Stage, now: float, *, zero_cpu: bool) -> None:
        actor_id = next(self._new_id)
        self.actors[actor_id] = Actor(stage, now, zero_cpu)
        self._num[stage] += 1
        self._num_zero_cpu[stage] += zero_cpu
        self._emit(StartActor(actor_id, stage, zero_cpu, self._starts.nodes_to_avoid(now)))

    def fill(self, stage: Stage, target: int, now: float, *, one_shares: bool) -> None:
        """Start the actors that a stage lacks; ``one_shares``: one of them has zero CPUs."""
        if self._starts.may_start(stage, now):
            while self._num[stage] < target:
                zero_cpu = one_shares and not self._num_zero_cpu[stage]
                self.start(stage, now, zero_cpu=zero_cpu)

    def placed(self, event: ActorPlaced) -> None:
        if (actor := self.actors.get(event.actor)) is not None:
            self._num_placed[actor.stage] += not actor.placed
            actor.placed, actor.node = True, event.node
            if event.node in self._draining:
                self._leave(event.actor)

    def came_up(self, actor_id: ActorId) -> None:
        actor = self.actors.get(actor_id)
        if actor is not None and not actor.up and not actor.is_leaving:
            self._num_placed[actor.stage] += not actor.placed
            self._num_up[actor.stage] += 1
            self._num_ready[actor.stage] += 1
            actor.placed = actor.up = True
            self._starts.came_up(actor.stage)
            self._none_up_since.pop(actor.stage, None)
            self._shelve(actor_id)
            self._note("actor_up", actor_id, "is up")

    def count_time(self, now: float) -> None:
        """Count the seconds that actors were up, and encoders paid for, since the last call."""
        elapsed_s = now - (now if self._counted_until is None else self._counted_until)
        self._counted_until = now
        for stage in STAGES:
            self._ledger.add("up_s", self._num_ready[stage] * elapsed_s, by=stage)
        self._ledger.add("paid_s", self._num_placed["encode"] * elapsed_s)

    # --- actors go ------------------------------------------------------------------------------

    def remove(self, actor_id: ActorId, *, kill: bool = True) -> Actor:
        """Forget an actor; return it, with what it held."""
        actor = self.actors.pop(actor_id)
        if actor.is_leaving:
            self._leaving.discard(actor_id)
        else:
            self._discount(actor)
        self._num_placed[actor.stage] -= actor.placed
        self._num_ready[actor.stage] -= actor.up
        self._idle[actor.stage].pop(actor_id, None)
        self._spare[actor.stage].pop(actor_id, None)
        if kill:
            self._emit(KillActor(actor_id))
        return actor

    def lost(self, event: ActorLost, now: float) -> Actor | None:
        """An actor died; return it if it was known."""
        actor, message = self.actors.get(event.actor), event.message
        if actor is None:
            return None
        where = " with its node" if event.node_lost else ""
        what = f"was lost{where}: {message}"
        self._note("actor_lost", event.actor, what, reason=message, node_lost=event.node_lost)
        self.remove(event.actor, kill=False)
        if actor.up:
            self._ledger.add("lost_actors", by=actor.stage)
            if event.node_lost and actor.node is not None and actor.node not in self._lost_nodes:
                self._lost_nodes.add(actor.node)
                self._ledger.add("num_lost_nodes")
        elif not event.node_lost:
            self._starts.failed(actor.stage, message, now, refused=False)
        return actor

    def refused(self, event: ActorRefused, now: float) -> None:
        """An actor's setup raised."""
        if event.actor in self.actors:
            what = f"did not start: {event.message}"
            self._note("actor_refused", event.actor, what, reason=event.message)
            actor = self.remove(event.actor)
            if event.is_node_trouble:
                self._starts.node_trouble(actor, event.message, now)
            else:
                self._starts.failed(actor.stage, event.message, now, refused=True)

    def node_trouble(self, actor: Actor, message: str, now: float) -> None:
        """An actor was removed because its node had trouble."""
        self._starts.node_trouble(actor, message, now)

    def remove_overdue(self, now: float) -> Iterator[tuple[Actor, str]]:
        """Kill actors that missed a deadline; yield each with what it held, and why."""
        timeout_s = self._config.start_timeout_s
        deadlines = {stage: getattr(self._config, stage).lease_deadline_s for stage in STAGES}
        for actor_id, actor in list(self.actors.items()):
            deadline_s = deadlines[actor.stage]
            if actor.leases and now - actor.head_since > deadline_s:
                why = f"its {actor.stage} worker did not answer within {deadline_s:g} s"
                self._ledger.add("lost_actors", by=actor.stage)
                what = f"was killed: {why}"
                self._note("actor_lost", actor_id, what, reason=why, node_lost=False)
                yield self.remove(actor_id), why
            elif not actor.up and now - actor.since > timeout_s:
                why = f"it was not ready within {timeout_s:g} s"
                self._note("actor_refused", actor_id, f"was given up: {why}", reason=why)
                yield self.remove(actor_id), why

    def surplus(self, stage: Stage, target: int) -> list[ActorId]:
        """The actors beyond ``target`` that cost least: not up yet, then idle, then newest."""
        number = self._num[stage] - target
        if number <= 0:
            return []
        staying = self._staying(stage)
        staying.sort(key=lambda one: (one[1].up, len(one[1].leases), -one[0]))
        return [actor_id for actor_id, _ in staying[:number]]

    def replace_starved(self, stage: Stage, now: float) -> None:
        """If all actors of a stage have long waited for capacity, start one with zero CPUs."""
        if self._num_up[stage]:
            return
        if now - self._none_up_since.setdefault(stage, now) > ZERO_CPU_AFTER_S:
            self._none_up_since[stage] = now
            staying = self._staying(stage)
            if staying and not any(actor.placed or actor.zero_cpu for _, actor in staying):
                self.remove(staying[0][0])
                self.start(stage, now, zero_cpu=True)

    def _staying(self, stage: Stage) -> list[tuple[ActorId, Actor]]:
        actors = self.actors.items()
        return [one for one in actors if one[1].stage == stage and not one[1].is_leaving]

    # --- nodes that will go ---------------------------------------------------------------------

    def drain(self, nodes: frozenset[NodeId]) -> bool:
        """Stop using draining nodes; return whether any is new."""
        news = nodes - self._draining
        self._draining = nodes
        for actor_id, actor in self.actors.items():
            if actor.node in nodes:
                self._leave(actor_id)
        if news:
            text, fields = f"{len(news)} nodes are draining", {"nodes": sorted(news)}
            self._emit(Note("nodes_draining", text, fields, is_warning=True))
        return bool(news)

    def is_leaving(self, actor_id: ActorId) -> bool:
        return actor_id in self._leaving

    def remove_left(self) -> None:
        """Kill the actors on draining nodes that hold nothing any more."""
        for actor_id in sorted(self._leaving):
            if not self.actors[actor_id].leases:
                self.remove(actor_id)

    def _leave(self, actor_id: ActorId) -> None:
        """Give an actor nothing new; it is replaced at once."""
        actor = self.actors[actor_id]
        if not actor.is_leaving:
            actor.is_leaving = True
            self._leaving.add(actor_id)
            self._discount(actor)
            self._shelve(actor_id)

    def _discount(self, actor: Actor) -> None:
        self._num[actor.stage] -= 1
        self._num_up[actor.stage] -= actor.up
        self._num_zero_cpu[actor.stage] -= actor.zero_cpu

    def _note(self, event: EventName, actor_id: ActorId, what: str, **more: object) -> None:
        """Say what happened to an actor; a warning unless it is good news."""
        actor = self.actors[actor_id]
        fields = {"actor": actor_id, "stage": actor.stage, "node": actor.node, **more}
        message = f"{actor.stage} actor {actor_id} {what}"
        self._emit(Note(event, message, fields, is_warning=event != "actor_up"))
