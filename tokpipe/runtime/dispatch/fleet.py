"""The actors: which exist, who has room for a lease, and when and where others may start."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from math import inf

from tokpipe.runtime.dispatch import protocol
from tokpipe.runtime.dispatch.outbox import Outbox
from tokpipe.runtime.dispatch.protocol import ActorId, AttemptId, Capacity, Dispatch, Limits, NodeId
from tokpipe.telemetry.logs import EventName
from tokpipe.types import STAGES, EncoderPath, Stage

SLOTS: Mapping[Stage, int] = {"decode": 2, "encode": 2, "write": 1}
"""Leases that an actor of each stage holds: with a second, it does not idle during a round trip."""
ZERO_CPU_AFTER_S = 20.0  # A stage waits this long for capacity, then starts an actor with zero CPUs
MAX_SETUP_FAILURES = 3  # Actors of a stage whose setup raises, in a row, before the job is aborted
MAX_LOST_STARTING = 10  # The same for actors that die while they start, as where memory is short
INPUTS_WITHIN_S = 120.0
"""When to find out whether an encoder has its inputs, and how long that may take: for what it
cannot read back from a disk, Ray waits without an end."""
MAX_PAUSE_S = 60.0
NODE_REST_S = 30.0  # For how long a node with trouble is avoided; twice as long each time
MAX_REST_S = 600.0  # The longest that it is avoided


@dataclass(slots=True)
class Actor:
    """One actor, from its start command until it is removed."""

    stage: Stage
    since: float
    zero_cpu: bool  # It requested zero CPUs, so it is not waiting for capacity
    node: NodeId | None = None
    placed_at: float | None = None
    up: bool = False
    leases: dict[AttemptId, Dispatch] = field(default_factory=dict)  # In the order of its work
    head_since: float = 0.0  # When its first lease got to the front: when its deadline started
    path: EncoderPath | None = None  # Of an encoder on a GPU
    asked_about: Dispatch | None = None  # Whose inputs were last looked for
    source_uri: str = ""  # Of a decoder: what it has fetched after its last lease

    @property
    def first(self) -> Dispatch | None:
        """What it works on."""
        return next(iter(self.leases.values()), None)

    @property
    def is_placed(self) -> bool:
        """Whether it occupies resources. It may be up before its node is known."""
        return self.up or self.node is not None


class _Starts:
    """When and where actors may start, after others failed to or their nodes had trouble."""

    def __init__(self, out: Outbox) -> None:
        self._out = out
        self._after: dict[Stage, float] = {}
        self._raised: Counter[Stage] = Counter()
        self._died: Counter[Stage] = Counter()
        self._nodes: dict[tuple[Stage, NodeId], tuple[int, float, str]] = {}
        """How often a stage had trouble on a node, until when it avoids it, and why."""

    def may_start(self, stage: Stage) -> bool:
        return self._out.now >= self._after.get(stage, 0.0)

    def avoided(self, stage: Stage) -> tuple[NodeId, ...]:
        nodes, now = self._nodes.items(), self._out.now
        return tuple(sorted(n for (of, n), (_, until, _) in nodes if of == stage and now < until))

    def unfit_nodes(self, stage: Stage) -> dict[NodeId, str]:
        """The nodes that a stage can never run on, and why."""
        nodes = self._nodes.items()
        return {node: why for (of, node), (_, until, why) in nodes if (of, until) == (stage, inf)}

    def came_up(self, stage: Stage) -> None:
        self._raised[stage] = self._died[stage] = 0
        self._after.pop(stage, None)

    def failed(self, stage: Stage, message: str, *, died: bool) -> None:
        """An actor died or raised while it started: pause before the next, or abort."""
        (self._died if died else self._raised)[stage] += 1
        in_a_row = self._raised[stage] + self._died[stage]
        self._after[stage] = self._out.now + min(MAX_PAUSE_S, 2.0**in_a_row)
        if self._raised[stage] >= MAX_SETUP_FAILURES or self._died[stage] >= MAX_LOST_STARTING:
            self._out.abort(
                f"{stage} actors: {in_a_row} in a row did not start; the last error: {message}. "
                "Without them no clip can finish. Committed work is kept; fix this and run again."
            )

    def node_trouble(
        self, actor: Actor, message: str, pause_s: float = 2, *, is_unfit: bool = False
    ) -> None:
        """Trouble of its node cost an actor: its stage avoids it, for good if ``is_unfit``. Where
        no other node is left, actors start there all the same, after a pause."""
        stage, node, now = actor.stage, actor.node, self._out.now
        self._after[stage] = max(self._after.get(stage, 0.0), now + min(MAX_PAUSE_S, pause_s))
        if node is None:
            return
        before, until, _ = self._nodes.get((stage, node), (0, 0.0, ""))
        if until == inf or (now < until and not is_unfit):
            return  # the others that were there with the first
        rest_s = inf if is_unfit else min(MAX_REST_S, NODE_REST_S * 2**before)
        self._nodes[stage, node] = before + 1, now + rest_s, message
        how_long = "" if is_unfit else f" for {rest_s:g} s"
        text = f"node {node[:12]}: not used to {stage}{how_long}: {message}"
        fields = {"stage": stage, "reason": message, "rest_s": None if is_unfit else rest_s}
        self._out.note("node_avoided", text, is_warning=True, node=node, **fields)


class Fleet:
    """Every actor, and which of them have room. The caller hands out what a removed one held."""

    def __init__(self, limits: Limits, out: Outbox) -> None:
        self.actors: dict[ActorId, Actor] = {}
        self._config = limits.runtime
        self._admits_one_class = limits.hardware == "same"
        self._classes = set(limits.encoders)  # Those of the output and of this run's encoders
        self._out = out
        self.starts = _Starts(out)
        self.attempts: dict[AttemptId, Dispatch] = {}  # Those in flight
        self.num_leased: Counter[Stage] = Counter()  # Of them by stage
        self._shelves: dict[Stage, list[dict[ActorId, None]]] = {
            stage: [{} for _ in range(slots)] for stage, slots in SLOTS.items()
        }
        """Actors that take another lease, by how many they hold, longest there first."""
        self.num: Counter[Stage] = Counter()  # Actors that are up or starting, but not leaving
        self.num_up: Counter[Stage] = Counter()  # Those of them that take leases
        self.leaving: set[ActorId] = set()  # Of draining nodes: they only finish what they hold
        self.last_up: dict[Stage, float] = {}  # When one was last up, or the first started
        self._draining: frozenset[NodeId] = frozenset()
        self._slow: set[str] = set()  # Why encoders have been slow
        self._counted_until: float | None = None

    def idle_actor(self, stage: Stage) -> ActorId | None:
        """The actor that has held nothing for longest."""
        return next(iter(self._shelves[stage][0]), None)

    def actor_with_room(self, stage: Stage) -> ActorId | None:
        """The idle actor, or else the one that has had a free slot for longest."""
        return next(chain(*self._shelves[stage]), None)

    def same_actor(self, stage: Stage, last: ActorId | None) -> ActorId | None:
        """``last`` again if it has room, else another: a busy decoder, which has fetched the
        source, is worth waiting for unless another is idle."""
        if any(last in shelf for shelf in self._shelves[stage]):
            return last
        if stage == "decode" and last in self.actors and not self._shelves[stage][0]:
            return None
        return self.actor_with_room(stage)

    def assign(self, lease: protocol.Lease, actor_id: ActorId, *, alone: bool = False) -> None:
        """Hand a lease to an actor; ``alone``: it gets no other beside it."""
        flight, actor = Dispatch(self._out.new_id(), actor_id, lease), self.actors[actor_id]
        if not actor.leases:
            actor.head_since = self._out.now
        actor.leases[flight.attempt] = self.attempts[flight.attempt] = flight
        self.num_leased[actor.stage] += 1
        if lease.stage == "decode" and lease.clips:
            actor.source_uri = lease.clips[-1].item.source_uri
        self._shelve(actor_id, takes_more=not alone)
        self._out.emit(flight)

    def end(self, attempt: AttemptId) -> tuple[Dispatch, float] | None:
        """End an attempt; return it and for how many seconds it was its actor's first, if known."""
        if (flight := self.attempts.pop(attempt, None)) is None:
            return None
        actor = self.actors[flight.actor]
        held_s = self._out.now - actor.head_since if flight is actor.first else 0.0
        del actor.leases[attempt]
        self.num_leased[actor.stage] -= 1
        actor.head_since = self._out.now
        self._shelve(flight.actor)
        return flight, held_s

    def _shelve(self, actor_id: ActorId, *, takes_more: bool = True) -> None:
        """Put an actor with those that have as much room, or nowhere."""
        actor = self.actors[actor_id]
        shelves, number = self._shelves[actor.stage], len(actor.leases)
        for shelf in shelves:
            shelf.pop(actor_id, None)
        if takes_more and number < len(shelves) and actor_id not in self.leaving:
            shelves[number][actor_id] = None

    def start(self, stage: Stage, *, zero_cpu: bool) -> None:
        actor_id = self._out.new_id()
        self.actors[actor_id] = Actor(stage, self._out.now, zero_cpu)
        self.num[stage] += 1
        self.last_up.setdefault(stage, self._out.now)
        avoid = self.starts.avoided(stage)
        self._out.emit(protocol.StartActor(actor_id, stage, zero_cpu, avoid))

    def fill(self, stage: Stage, target: int, *, one_shares: bool) -> None:
        """Start the actors that a stage lacks; ``one_shares``: one of them has zero CPUs."""
        lacking = target - self.num[stage]
        if lacking <= 0 or not self.starts.may_start(stage):
            return
        zero_cpu = one_shares and not any(one.zero_cpu for one in self._staying(stage).values())
        for number in range(lacking):
            self.start(stage, zero_cpu=zero_cpu and not number)

    def placed(self, event: protocol.ActorPlaced) -> None:
        if (actor := self.actors.get(event.actor)) is not None:
            actor.node, actor.placed_at = event.node, self._out.now
            if event.node in self._draining:
                self._leave(event.actor)

    def came_up(self, event: protocol.ActorUp) -> None:
        if (actor := self.actors.get(event.actor)) is None:
            return
        if misfit := self._misfit(event.encoder):
            self.lose(protocol.ActorLost(event.actor, "node_unfit", misfit))
            return
        if not actor.up and event.actor not in self.leaving:
            actor.up = True
            self.num_up[actor.stage] += 1
            self.starts.came_up(actor.stage)
            since = actor.since if actor.placed_at is None else actor.placed_at
            self._out.count("started", by=actor.stage)
            self._out.count("starting_s", self._out.now - since, by=actor.stage)
            self._shelve(event.actor)
            self._note("actor_up", event.actor, "is up")
        self.hear_path(event.actor, event.path)

    def hear_path(self, actor_id: ActorId, path: EncoderPath | None) -> None:
        """Remember how an encoder computes; warn of each new reason why that is slow, once."""
        if path is None:
            return
        self.actors[actor_id].path = path
        news = set(path.slow) - self._slow
        self._slow |= news
        text = f"encode actor {actor_id}: {'; '.join(sorted(news)) or path}"
        self._out.note("encoder_path", text, is_warning=bool(news), **path._asdict())

    def _misfit(self, found: str | None) -> str | None:
        """Take in the class of an encoder that came up; return why it must not encode, if so."""
        if not found:
            return None
        others = "; ".join(sorted(self._classes - {found}))
        if others and self._admits_one_class:
            return f"encode.hardware is same: it has {found}, and this output {others}"
        if others and found not in self._classes:
            text = (
                f"{found} joins this output, which has clips encoded on {others}. One code in a "
                "thousand may differ in bfloat16. To admit one class, set encode.hardware to same"
            )
            self._out.note("encoder_class_joined", text, is_warning=True, encoder=found)
        self._classes.add(found)
        return None

    def count_time(self) -> None:
        """Count the seconds since the last call that actors were up, and encoders paid for."""
        now, before = self._out.now, self._counted_until
        elapsed_s, self._counted_until = now - (now if before is None else before), now
        up = Counter(actor.stage for actor in self.actors.values() if actor.up)
        for stage in STAGES:
            self._out.count("up_s", up[stage] * elapsed_s, by=stage)
        encoders = (one for one in self.actors.values() if one.stage == "encode")
        self._out.count("paid_s", sum(one.is_placed for one in encoders) * elapsed_s)

    def remove(self, actor_id: ActorId) -> Actor:
        """Kill and forget an actor; return it, with what it held."""
        self._shelve(actor_id, takes_more=False)
        self._discount(actor_id)
        actor = self.actors.pop(actor_id)
        self.leaving.discard(actor_id)
        for attempt in actor.leases:
            del self.attempts[attempt]
        self.num_leased[actor.stage] -= len(actor.leases)
        self._out.emit(protocol.KillActor(actor_id))
        return actor

    def lose(self, event: protocol.ActorLost) -> Actor | None:
        """Remove an actor that is lost, or did not start; return it if it was known."""
        actor_id, how, message = event
        if (actor := self.actors.get(actor_id)) is None:
            return None
        stage, starts, may_start = actor.stage, self.starts, self.starts.may_start(actor.stage)
        if how in ("died", "node_died") or (how == "overdue" and actor.up):
            with_node = how == "node_died"
            what = "was killed" if how == "overdue" else f"was lost{' with its node' * with_node}"
            text = f"{what}: {message}"
            self._note("actor_lost", actor_id, text, reason=message, node_lost=with_node)
        else:
            what = "was abandoned" if how == "overdue" else "did not start"
            self._note("actor_refused", actor_id, f"{what}: {message}", reason=message)
        self.remove(actor_id)
        match how:
            case "died" | "node_died" | "overdue" if actor.up:
                self._out.count("lost_actors", by=stage)
            case "died" | "raised":
                starts.failed(stage, message, died=how == "died")
            case "node_trouble" | "node_unfit":
                starts.node_trouble(actor, message, is_unfit=how == "node_unfit")
                # Of those that trouble ends at the same time, one counts, if no other works.
                if how == "node_trouble" and may_start and not self.num_up[stage]:
                    starts.failed(stage, message, died=True)
        return actor

    def fitting(self, capacity: Capacity) -> Capacity:
        """Leave out nodes that a stage can never run on; end the job if no other has room."""
        unfit = {stage: self.starts.unfit_nodes(stage) for stage in STAGES}
        for stage, known in unfit.items():
            nodes = set(capacity.nodes_for(stage))
            if nodes and nodes <= known.keys() and not self.num_up[stage]:
                found = "; ".join(f"node {node[:12]}: {known[node]}" for node in sorted(nodes))
                self._out.abort(
                    f"no node of the cluster can {stage} for this job: {found}. Codes could "
                    "differ, or shards be lost. Committed work is kept: use nodes that see the "
                    "output, with the packages and hardware that it names, and run again.",
                    kind="config",
                )
        return capacity.without(unfit)

    def overdue(self) -> Iterator[protocol.ActorLost]:
        """Yield the loss of each actor that misses a deadline."""
        timeout_s, now = self._config.start_timeout_s, self._out.now
        for actor_id, actor in list(self.actors.items()):
            deadline_s = getattr(self._config, actor.stage).lease_deadline_s
            if actor.leases and now - actor.head_since > deadline_s:
                why = f"its {actor.stage} worker did not answer within {deadline_s:g} s"
            elif not actor.up and now - actor.since > timeout_s:
                why = f"it was not ready within {timeout_s:g} s"
            else:
                continue
            yield protocol.ActorLost(actor_id, "overdue", why)

    def ask_about_late(self) -> None:
        """Ask, once, about what encoders have long been busy with: they may not have begun."""
        for actor in self.actors.values():
            flight, is_late = actor.first, self._out.now - actor.head_since > INPUTS_WITHIN_S
            if flight and is_late and actor.stage == "encode" and flight is not actor.asked_about:
                actor.asked_about = flight
                self._out.emit(protocol.FindInputs(flight, actor.node))

    def surplus(self, stage: Stage, target: int) -> list[ActorId]:
        """The actors beyond ``target`` that cost least: not up yet, then idle, then newest."""
        number = self.num[stage] - target
        if number <= 0:
            return []
        staying = [(one.up, len(one.leases), -i) for i, one in self._staying(stage).items()]
        return [-i for _, _, i in sorted(staying)[:number]]

    def replace_starved(self, stage: Stage) -> None:
        """If all actors of a stage have long waited for capacity, start one with zero CPUs."""
        now = self._out.now
        if self.num_up[stage] or now - self.last_up.get(stage, now) <= ZERO_CPU_AFTER_S:
            return
        staying = self._staying(stage)
        if staying and not any(one.is_placed or one.zero_cpu for one in staying.values()):
            self.remove(next(iter(staying)))
            self.start(stage, zero_cpu=True)

    def _staying(self, stage: Stage) -> dict[ActorId, Actor]:
        of_stage = ((id, one) for id, one in self.actors.items() if one.stage == stage)
        return {id: one for id, one in of_stage if id not in self.leaving}

    def drain(self, nodes: frozenset[NodeId]) -> bool:
        """Stop using draining nodes; return whether any is new."""
        news = nodes - self._draining
        self._draining = nodes
        for actor_id, actor in self.actors.items():
            if actor.node in nodes:
                self._leave(actor_id)
        if news:
            text = f"{len(news)} nodes are draining"
            self._out.note("nodes_draining", text, is_warning=True, nodes=sorted(news))
        return bool(news)

    def remove_left(self) -> None:
        """Kill the actors on draining nodes that no longer hold anything."""
        for actor_id in sorted(self.leaving):
            if not self.actors[actor_id].leases:
                self.remove(actor_id)

    def _leave(self, actor_id: ActorId) -> None:
        """An actor gets nothing new, and is replaced at once."""
        self._discount(actor_id)
        self.leaving.add(actor_id)
        self._shelve(actor_id)

    def _discount(self, actor_id: ActorId) -> None:
        if actor_id not in self.leaving:
            actor = self.actors[actor_id]
            self.num[actor.stage] -= 1
            if actor.up:
                self.num_up[actor.stage] -= 1
                self.last_up[actor.stage] = self._out.now

    def _note(self, event: EventName, actor_id: ActorId, what: str, **more: object) -> None:
        stage, node = self.actors[actor_id].stage, self.actors[actor_id].node
        fields = {"actor": actor_id, "stage": stage, "node": node, **more}
        text = f"{stage} actor {actor_id} {what}"
        self._out.note(event, text, is_warning=event != "actor_up", **fields)
