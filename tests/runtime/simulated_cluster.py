"""The nodes and actors of a simulated job, what goes wrong with them, and the outputs they hold."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tests.runtime.simulated_world import (
    Key,
    Kind,
    Scenario,
    codes_after,
    codes_of_stream,
    receipt_of,
    ref_of,
)
from tokpipe.runtime.dispatch import protocol
from tokpipe.types import ClipRef, Failed, Rejected, Stage, WorkItem


@dataclass
class SimActor:
    stage: Stage
    node: int
    busy_until: float = 0.0
    alive: bool = True
    is_draining: bool = False
    """The dispatcher knows that its node is draining."""
    alone: set[Key] = field(default_factory=set)
    """Clips that it got as leases of one."""


@dataclass(frozen=True)
class Output:
    """What an attempt made of one clip, or of one piece of a streamed clip."""

    ref: ClipRef
    piece: int
    num_pieces: int
    part: int = 0
    """Which object holds it."""
    codes: int = 0
    """Codes of a piece: they depend on the pieces before it."""


class Cluster:
    """The actors of one driver. ``post`` has an event arrive after some seconds."""

    def __init__(self, sim: Scenario, post: Callable[[float, protocol.Event], None]) -> None:
        self.sim = sim
        self.rng = sim.rng
        self.world = sim.world
        self.post = post
        self.nodes = [0, 1, 2]
        """Nodes of two CPUs. One that leaves is replaced by another number."""
        self.num_nodes = len(self.nodes)
        """All that ever were there."""
        self.draining: set[str] = set()
        self.actors: dict[protocol.ActorId, SimActor] = {}
        self.homes: dict[protocol.AttemptId, int] = {}
        """The node that holds what an attempt made."""
        self.outputs: dict[protocol.AttemptId, list[Output | None]] = {}
        """None in place of what is released."""
        self.states: dict[protocol.AttemptId, tuple[protocol.StreamId | None, int]] = {}
        """What the next piece of a streamed clip continues from."""
        self.left_states: set[protocol.AttemptId] = set()
        """The attempts that ever left one."""
        self.encode_s = 0.0
        """Seconds of encoders that were reported to the dispatcher."""

    # --- actors and nodes -----------------------------------------------------------------------

    def capacity(self) -> protocol.Capacity:
        return protocol.Capacity({str(node): protocol.Room(2.0) for node in self.nodes})

    def start(self, command: protocol.StartActor) -> None:
        fit = [node for node in self.nodes if str(node) not in command.avoid]
        if not fit:  # it waits for capacity
            return
        node = self.rng.choice(fit)
        self.actors[command.actor] = SimActor(command.stage, node)
        if self.rng.random() < self.sim.trouble.leases.get("actor lost", 0.0) / 3:
            self.post(2.0, protocol.ActorLost(command.actor, "died", "while starting"))
        elif self.rng.random() < self.sim.trouble.leases.get("fault", 0.0) / 10:
            how: protocol.Loss = "node_trouble" if self.rng.random() < 0.5 else "raised"
            self.post(2.0, protocol.ActorLost(command.actor, how, "cannot"))
        elif command.zero_cpu or self.rng.random() > 0.1:
            self.post(0.5, protocol.ActorPlaced(command.actor, str(node)))
            self.post(self.rng.uniform(1, 4), protocol.ActorUp(command.actor))

    def lose(self, actor_id: protocol.ActorId, delay: float, *, node_lost: bool = False) -> None:
        how: protocol.Loss = "node_died" if node_lost else "died"
        self.post(delay, protocol.ActorLost(actor_id, how, "killed"))

    def lose_node(self, actor_id: protocol.ActorId, delay: float) -> None:
        """Take away the node of an actor and everything that it holds, often for a new node."""
        node = self.actors[actor_id].node
        if node not in self.nodes:  # it is already going
            self.lose(actor_id, delay, node_lost=True)
            return
        self.nodes.remove(node)
        for other, actor in self.actors.items():
            if actor.node == node and actor.alive:
                self.lose(other, delay + self.rng.uniform(0, 1), node_lost=True)
        self.post(delay + 1.0, self.capacity())
        if self.rng.random() < 0.7:
            self.nodes.append(self.num_nodes)
            self.num_nodes += 1
            self.post(delay + self.rng.uniform(5, 60), self.capacity())

    def drain(self, actor_id: protocol.ActorId) -> None:
        """Announce the loss of an actor's node half a minute ahead."""
        if (node := self.actors[actor_id].node) in self.nodes:
            self.draining.add(str(node))
            self.lose_node(actor_id, 30.0)
            self.post(0.0, self.capacity())

    def blame(self, actor: SimActor) -> None:
        self.sim.blamed.update(actor.alone)

    # --- leases ---------------------------------------------------------------------------------

    def work(self, command: protocol.Dispatch) -> None:
        """Decide how this attempt ends, and post what the driver learns about it."""
        lease, actor = command.lease, self.actors[command.actor]
        assert actor.alive, "dispatched to an actor that the dispatcher killed"
        assert not actor.is_draining, "given work on a draining node"
        actor.busy_until = max(self.sim.now, actor.busy_until) + self.rng.expovariate(1 / 3.0)
        late = actor.busy_until - self.sim.now
        if len(lease.items) == 1:
            actor.alone.add((lease.items[0].row, lease.items[0].segment))
        kind = self.draw(lease)
        self.sim.seen[kind] += 1
        match kind:
            case "clip kills":
                self.lose(command.actor, late)
            case "actor lost":
                # Half of them had finished: the answer may arrive before or after the loss.
                if self.rng.random() < 0.5:
                    self.post(late + self.rng.uniform(-0.5, 0.5), self.answer(command))
                self.lose(command.actor, late, node_lost=self.rng.random() < 0.7)
            case "node lost":
                self.lose_node(command.actor, late)
            case "zombie":  # killed at its deadline, but it answers anyway
                actor.busy_until += 300.0
                self.blame(actor)
                self.post(late + 300.0, self.answer(command))
            case "fault" | "storage" | "node":
                if kind == "fault":
                    self.blame(actor)
                self.post(late, protocol.LeaseFailed(command.attempt, kind, "broke"))
            case "drained" | "none":
                self.post(late, self.answer(command))
                if kind == "drained":
                    self.drain(command.actor)

    def draw(self, lease: protocol.Lease) -> Kind:
        if any(self.world.flaw(lease.stage, item) == "kills" for item in lease.items):
            return "clip kills"
        leases = self.sim.trouble.leases
        kinds: list[Kind] = [*leases, "none"]
        (kind,) = self.rng.choices(kinds, [*leases.values(), 1 - sum(leases.values())])
        return "none" if kind in ("node lost", "drained") and len(self.nodes) == 1 else kind

    def answer(self, command: protocol.Dispatch) -> protocol.Event:
        """Do the work of an attempt; its node holds what it makes."""
        attempt, lease = command.attempt, command.lease
        self.homes[attempt] = self.actors[command.actor].node
        if lease.stage == "decode":
            return self.decoded(attempt, lease)
        sources = {place.source for place in lease.places}
        assert sources <= self.outputs.keys(), "an output was released while it was needed"
        if lost := tuple(filter(self.is_lost, sources)):
            return protocol.LeaseFailed(attempt, "inputs_lost", "gone", lost)
        inputs = [one for source, at, _ in lease.places if (one := self.outputs[source][at])]
        assert len(inputs) == len(lease.places), "a part was released while it was needed"
        assert [one.part for one in inputs] == [part for *_, part in lease.places]
        if lease.stage == "encode":
            make = self.encoded if lease.stream is None else self.piece_encoded
            return make(attempt, lease, inputs)
        refs = self.joined(inputs)
        assert_same(lease.items, refs)
        grids = {self.world.grids[ref.row] for ref in refs}
        assert len(grids) == 1, "a shard holds one grid"
        name = f"plan-{lease.lease_id}-{attempt}"
        return protocol.LeaseDone(attempt, receipt_of(tuple(refs), name, grids.pop()))

    def decoded(self, attempt: protocol.AttemptId, lease: protocol.Lease) -> protocol.Event:
        outputs: list[Output | None] = []
        infos: list[protocol.Info] = []
        for item in lease.items:
            row = item.row
            total, num_pieces = self.world.num_segments[row], self.world.num_pieces[row]
            assert item.num_segments in (None, total)
            assert item.num_pieces in (None, num_pieces)
            is_bad = self.world.flaw("decode", item) == "bad"
            ref = ref_of(item if is_bad else replace(item, num_segments=total))
            part, num_frames = self.world.sizes[row], self.world.num_frames[row]
            outputs.append(Output(ref, item.piece, num_pieces, part))
            # A source that could not be fetched does not show how many segments it has.
            problem = self.problem("decode", item, ref_of(item))
            can_be_reused = not problem and num_pieces == 1 and not self.world.flaw("encode", item)
            if can_be_reused and self.rng.random() < self.sim.reused:
                self.sim.seen["reused"] += 1
                outputs[-1] = Output(ref, 0, 1, protocol.REUSED)
                infos.append(self.encoded_info(ref))
                continue
            infos.append(problem or protocol.DecodedInfo(ref, num_frames, num_pieces, part))
        self.outputs[attempt] = outputs
        return protocol.LeaseDone(attempt, tuple(infos))

    def encoded(
        self, attempt: protocol.AttemptId, lease: protocol.Lease, pixels: list[Output]
    ) -> protocol.Event:
        assert_same(lease.items, refs := [output.ref for output in pixels])
        self.outputs[attempt] = [replace(one, part=0) for one in pixels]
        infos = (
            self.problem("encode", item, ref) or self.encoded_info(ref)
            for item, ref in zip(lease.items, refs, strict=True)
        )
        self.encode_s += 2.0
        return protocol.LeaseDone(attempt, tuple(infos), 2.0)

    def piece_encoded(
        self, attempt: protocol.AttemptId, lease: protocol.Lease, pixels: list[Output]
    ) -> protocol.Event:
        """Encode one piece of a streamed clip from the state that the dispatcher names."""
        (item,), (piece,) = lease.items, pixels
        assert (piece.ref.row, piece.piece) == (item.row, item.piece), "pixels of another piece"
        before = 0
        if lease.state is not None:
            assert lease.state in self.states, "a state was released while it was needed"
            if self.is_lost(lease.state):
                self.sim.seen["state lost"] += 1
                return protocol.LeaseFailed(attempt, "inputs_lost", "gone")
            _, before = self.states[lease.state]
        codes = codes_after(before, item.row, item.piece)
        self.outputs[attempt] = [replace(piece, part=0, codes=codes)]
        if self.world.flaw("encode", item) == "bad":
            return protocol.LeaseDone(
                attempt, (Rejected(piece.ref, "encode", "non_finite", "bad"),)
            )
        if item.piece < piece.num_pieces - 1:
            self.states[attempt] = (lease.stream, codes)
            self.left_states.add(attempt)
        self.encode_s += 1.0
        return protocol.LeaseDone(attempt, (self.encoded_info(piece.ref),), 1.0)

    def problem(self, stage: Stage, item: WorkItem, ref: ClipRef) -> protocol.Info | None:
        flaw = self.world.flaw(stage, item)
        if flaw == "bad":
            return Rejected(ref, stage, "corrupt", "bad")
        if flaw == "fails" or self.rng.random() < self.sim.trouble.gives_up:
            self.sim.seen["gave up"] += 1
            self.sim.blamed[ref.row, ref.segment] += 1
            return Failed(ref, "gave_up", "broke")
        return None

    def encoded_info(self, ref: ClipRef) -> protocol.EncodedInfo:
        return protocol.EncodedInfo(ref, self.world.grids[ref.row], 100)

    def joined(self, outputs: list[Output]) -> list[ClipRef]:
        """The clips that the write stage makes: streamed ones whole, with the right codes."""
        refs = []
        while outputs:
            first = outputs[0]
            pieces, outputs = outputs[: first.num_pieces], outputs[first.num_pieces :]
            assert [one.ref for one in pieces] == [first.ref] * first.num_pieces
            if first.num_pieces > 1:
                codes = [one.codes for one in pieces]
                assert codes == codes_of_stream(first.ref.row, first.num_pieces), "wrong codes"
                self.sim.seen["streamed"] += 1
            refs.append(first.ref)
        return refs

    # --- outputs --------------------------------------------------------------------------------

    def is_lost(self, attempt: protocol.AttemptId) -> bool:
        return self.homes[attempt] not in self.nodes

    def release(self, command: protocol.Release) -> None:
        if command.part == protocol.STATE and command.attempt in self.left_states:
            assert command.attempt in self.states, "a state was released twice"
        elif command.part is not None:
            outputs = self.outputs[command.attempt]
            self.outputs[command.attempt] = [
                None if one is None or one.part == command.part else one for one in outputs
            ]
            return
        else:
            self.outputs.pop(command.attempt, None)
        self.states.pop(command.attempt, None)


def assert_same(items: tuple[WorkItem, ...], refs: list[ClipRef]) -> None:
    assert [(i.row, i.segment) for i in items] == [(r.row, r.segment) for r in refs]
