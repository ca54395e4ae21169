"""A run in virtual time: the real dispatcher, on nodes that come and go as in a trace."""

import heapq
import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from infra.spot.trace import Change
from tokpipe.errors import ConfigError
from tokpipe.runtime.dispatch import Dispatcher, Limits, protocol
from tokpipe.runtime.dispatch.pools import gpus_per_encoder
from tokpipe.runtime.dispatch.protocol import ActorId, AttemptId, Dispatch, Event, NodeId, Room
from tokpipe.types import ClipRef, Receipt, Stage, WorkItem

NODE_START_S = 120.0  # From when a node is paid for until Ray has it
LOST_AFTER_S = 5.0  # Until Ray reports that a node is gone
WORKER_S = 3.0  # Until Ray has started an actor's process, before what is measured
LOOK_EVERY_S = 3.0  # How often a driver looks at its nodes
COMMIT_S = 0.5
TOO_LONG = 20  # Times what one actor of each stage would need by itself


class Pace(NamedTuple):
    """What was measured of a job."""

    clip_s: Mapping[Stage, float]  # Seconds that a clip takes an actor
    start_s: Mapping[Stage, float]  # Seconds from an actor's first sign of life to its first lease
    codes_per_clip: float


@dataclass(slots=True)
class _Kind:
    """The nodes of one kind."""

    room: Room
    wanted: int  # Most of them at a time
    price: float = 0.0
    nodes: list[NodeId] = field(default_factory=list)  # Paid for, up or not


@dataclass(slots=True)
class _Actor:
    stage: Stage
    needs: tuple[float, float]  # CPUs and GPUs
    node: NodeId | None = None
    free_at: float = 0.0


class Play:
    """One run. ``seed`` decides what a trace leaves open: which nodes go, and how long each lease
    and each start takes, half to one and a half of the mean."""

    def __init__(
        self,
        limits: Limits,
        pace: Pace,
        num_clips: int,
        kinds: Mapping[str, tuple[Room, int]],
        changes: Iterator[Change],
        seed: int,
    ) -> None:
        """``kinds``: what a node of each kind has, and how many the job wants."""
        self._limits, self._pace, self._changes = limits, pace, changes
        self._kinds = {name: _Kind(*one) for name, one in kinds.items()}
        self._rng = random.Random(seed)
        self._dispatcher = Dispatcher(limits, _ref_of)
        self._items = (WorkItem(row, str(row), str(row)) for row in range(num_clips))
        self._rooms: dict[NodeId, Room] = {}  # Of nodes that are up, as far as Ray knows
        self._free: dict[NodeId, list[float]] = {}  # CPUs and GPUs that those that are up have left
        self._actors: dict[ActorId, _Actor] = {}
        self._homes: dict[AttemptId, NodeId | None] = {}  # The node that holds an output
        self._events: list[tuple[float, int, ActorId | None, Event | Callable[[], object]]] = []
        self._order, self._now = itertools.count(), 0.0
        self._cost, self._paid_until = 0.0, 0.0
        self._end_by = 1e5 + TOO_LONG * num_clips * sum(pace.clip_s.values())

    def run(self) -> tuple[float, float]:
        """Play to the end; return its seconds, and what all nodes cost until then. ConfigError: the
        job fails, or takes far too long."""
        self._next_change()
        self._look()
        while self._now < self._end_by:
            self._now, _, of, event = heapq.heappop(self._events)
            if of is not None and of not in self._actors:  # it is gone, with what it did
                continue
            if callable(event):
                event()
                continue
            for command in self._dispatcher.handle(event, self._now):
                match command:
                    case protocol.Finish():
                        self._pay()
                        return self._now, self._cost
                    case protocol.Abort(_, message):
                        raise ConfigError(f"the job would not end well: {message}")
                self._carry_out(command)
        hours = f"{self._now / 3600:,.0f} hours"
        raise ConfigError(f"the job is not done after {hours}: the trace has too few nodes for it")

    def _post(
        self, delay_s: float, event: Event | Callable[[], object], of: ActorId | None = None
    ) -> None:
        heapq.heappush(self._events, (self._now + delay_s, next(self._order), of, event))

    def _about(self, seconds: float) -> float:
        return seconds * self._rng.uniform(0.5, 1.5)

    def _carry_out(self, command: protocol.Command) -> None:
        match command:
            case protocol.StartActor(actor, stage, zero_cpu):
                runtime = self._limits.runtime
                gpus = gpus_per_encoder(runtime) if stage == "encode" and self._limits.on_gpu else 0
                needs = 0.0 if zero_cpu else getattr(runtime, stage).cpus, gpus
                self._actors[actor] = _Actor(stage, needs)
                self._place_actors()
            case protocol.KillActor(actor) if actor in self._actors:
                self._occupy(self._actors.pop(actor), -1)
                self._place_actors()
            case protocol.Dispatch() if command.actor in self._actors:
                self._post(*self._work(command))
            case protocol.FetchPlan(number):
                items = tuple(itertools.islice(self._items, number))
                self._post(0.0, protocol.Planned(items, exhausted=len(items) < number))
            case protocol.Release(attempt, None):
                self._homes.pop(attempt, None)
            case protocol.Commit():
                self._post(COMMIT_S, protocol.Committed())

    # --- nodes ----------------------------------------------------------------------------------

    def _next_change(self) -> None:
        if (change := next(self._changes, None)) is not None:
            self._post(change.at_s - self._now, partial(self._change, change))

    def _change(self, change: Change) -> None:
        self._pay()
        kind = self._kinds[change.kind]
        kind.price, number = change.price, min(change.nodes, kind.wanted)
        while len(kind.nodes) < number:
            kind.nodes.append(node := f"{change.kind} {next(self._order)}")
            self._post(self._about(NODE_START_S), partial(self._join, node, kind))
        while len(kind.nodes) > number:
            self._leave(kind.nodes.pop(self._rng.randrange(len(kind.nodes))))
        self._next_change()

    def _pay(self) -> None:
        per_hour = sum(kind.price * len(kind.nodes) for kind in self._kinds.values())
        self._cost += per_hour * (self._now - self._paid_until) / 3600
        self._paid_until = self._now

    def _join(self, node: NodeId, kind: _Kind) -> None:
        if node in kind.nodes:  # else it went before it was up
            self._rooms[node], self._free[node] = kind.room, [kind.room.cpus, kind.room.gpus]
            self._place_actors()

    def _leave(self, node: NodeId) -> None:
        """A node is gone, with its actors and what it holds."""
        self._free.pop(node, None)
        for actor in [id for id, one in self._actors.items() if one.node == node]:
            del self._actors[actor]
            self._post(LOST_AFTER_S, protocol.ActorLost(actor, "node_died", "its node is gone"))
        self._post(LOST_AFTER_S, lambda: self._rooms.pop(node, None))

    def _look(self) -> None:
        self._post(0.0, protocol.Capacity(dict(self._rooms)))
        self._post(0.0, protocol.Tick())
        self._post(LOOK_EVERY_S, self._look)

    # --- actors ---------------------------------------------------------------------------------

    def _place_actors(self) -> None:
        """Put each waiting actor on the node with most room."""
        for actor_id, one in self._actors.items():
            if one.node is None:
                free = self._free.items()
                fits = [
                    (c, -g, node)
                    for node, (c, g) in free
                    if one.needs[0] <= c and one.needs[1] <= g
                ]
                one.node = max(fits)[-1] if fits else None
                if one.node is not None:
                    self._occupy(one, 1)
                    self._post(WORKER_S, protocol.ActorPlaced(actor_id, one.node), actor_id)
                    start_s = WORKER_S + self._about(self._pace.start_s[one.stage])
                    self._post(start_s, protocol.ActorUp(actor_id), actor_id)

    def _occupy(self, actor: _Actor, sign: int) -> None:
        if actor.node is not None:
            free = self._free[actor.node]
            self._free[actor.node] = [f - sign * n for f, n in zip(free, actor.needs, strict=True)]

    def _work(self, command: Dispatch) -> tuple[float, Event, ActorId]:
        """When an actor answers, and what."""
        lease, actor, attempt = command.lease, self._actors[command.actor], command.attempt
        sources = {place.source for place in lease.places}
        if lost := tuple(one for one in sources if self._homes.get(one) not in self._free):
            failed = protocol.LeaseFailed(attempt, "inputs_lost", "their node is gone", lost)
            return 0.0, failed, command.actor
        busy_s = self._about(self._pace.clip_s[lease.stage] * len(lease.clips))
        actor.free_at = max(self._now, actor.free_at) + busy_s
        self._homes[attempt] = actor.node
        answer: tuple[protocol.Info, ...] | Receipt
        refs, num_codes = tuple(map(_ref_of, lease.items)), round(self._pace.codes_per_clip)
        if lease.stage == "decode":
            answer = tuple(protocol.DecodedInfo(ref, 1) for ref in refs)
        elif lease.stage == "encode":
            answer = tuple(protocol.EncodedInfo(ref, (1, 1), num_codes) for ref in refs)
        else:
            answer = Receipt(
                "", 0, "", len(refs), num_codes * len(refs), 0, (1, 1), "", "", 0, refs
            )
        done = protocol.LeaseDone(attempt, answer, busy_s)
        return actor.free_at - self._now, done, command.actor


def _ref_of(item: WorkItem) -> ClipRef:
    return ClipRef(item.row_id, item.row, 0, 1, item.source_uri)
