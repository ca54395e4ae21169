"""A whole cluster in one thread: the real dispatcher and committer, everything else simulated.

A seed decides everything that happens: when actors start, how long leases take, which actors
and nodes are lost or frozen, which answers come late from zombies, which stored objects vanish,
which clips kill their worker, and when the driver dies and restarts. Time is virtual, so a job
of many minutes takes milliseconds.
"""

import heapq
import itertools
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from tests.formats.formats_helpers import DictStore
from tokpipe.config.job import PoolConfig, RuntimeConfig
from tokpipe.errors import Fenced, StorageError
from tokpipe.formats.manifest import ManifestState, iter_entries, iter_rejected
from tokpipe.runtime.commit import Committer, claim_output
from tokpipe.runtime.dispatch import Dispatcher, Limits, protocol
from tokpipe.runtime.dispatch.protocol import (
    ActorId,
    AttemptId,
    Command,
    DecodeLease,
    EncodeLease,
    Event,
    Lease,
)
from tokpipe.runtime.dispatch.streams import AHEAD
from tokpipe.runtime.feed import Feed
from tokpipe.types import STAGES, ClipRef, Failed, Receipt, Rejected, Stage, WorkItem

Key = tuple[int, int]
"""(plan row, segment)."""


@dataclass
class Trouble:
    """What a seed does to the job: chances per lease, times in virtual seconds."""

    lose_actor: float = 0.0
    lose_node: float = 0.0
    freeze: float = 0.0
    fault: float = 0.0
    storage: float = 0.0
    driver_dies: float = 0.0
    stop: float = 0.0
    store_fails: float = 0.0
    gives_up: float = 0.0
    """A stage fails at one clip of a lease and continues with the others."""
    node_trouble: float = 0.0
    drain: float = 0.0
    retry: float = 0.0
    """Chance per driver that it withdraws all rejections first."""


@dataclass(frozen=True)
class Flaw:
    """What is wrong with one piece of a streamed clip."""

    stage: Stage
    piece: int
    kills: bool
    """It kills every worker of the stage that touches it; otherwise it is rejected there."""


@dataclass
class World:
    """The dataset and its fate: the result of an undisturbed job."""

    num_rows: int
    segments: dict[int, int]
    bad_rows: set[int]
    bad_to_encode: set[Key]
    poison: set[Key]
    """Kill every decode worker that touches them."""
    poison_encode: set[Key]
    hopeless: set[tuple[Stage, Key]]
    """A stage fails at them every time and survives."""
    grids: dict[int, tuple[int, int]]
    pieces: dict[int, int]
    """Rows that are streamed in several pieces. Of the fields above only ``grids`` has them."""
    flaws: dict[int, Flaw]
    """By row, of streamed clips."""

    def is_flawed(self, item: WorkItem, stage: Stage, *, kills: bool) -> bool:
        return self.flaws.get(item.row) == Flaw(stage, item.piece, kills)

    def expected(self) -> dict[Key, str]:
        fate: dict[Key, str] = {}
        for row in range(self.num_rows):
            if row in self.flaws:
                fate[row, 0] = "lost" if self.flaws[row].kills else "bad"
            elif row in self.bad_rows:
                fate[row, 0] = "bad"
            elif (row, 0) in self.poison or ("decode", (row, 0)) in self.hopeless:
                # No worker survives to report how many segments the source has.
                fate[row, 0] = "lost"
            else:
                for segment in range(self.segments.get(row, 1)):
                    key = (row, segment)
                    hopeless = ("decode", key) in self.hopeless or (
                        ("encode", key) in self.hopeless and key not in self.bad_to_encode
                    )
                    if key in self.poison or key in self.poison_encode or hopeless:
                        fate[key] = "lost"
                    else:
                        fate[key] = "bad" if key in self.bad_to_encode else "codes"
        return fate


def ref_of(item: WorkItem) -> ClipRef:
    total = item.num_segments or 1
    clip_id = item.row_id if total == 1 else f"{item.row_id}.{item.segment}"
    return ClipRef(clip_id, item.row, item.segment, total, item.source_uri)


@dataclass(frozen=True)
class Output:
    """What an attempt made of one clip, or of one piece of a streamed clip."""

    ref: ClipRef
    piece: int = 0
    num_pieces: int = 1
    codes: int = 0
    """Codes of a piece: they depend on the pieces before it."""


@dataclass(frozen=True)
class State:
    """What the next piece of a streamed clip continues from. On node -1 it is lost."""

    node: int
    stream: protocol.StreamId | None
    value: int


def codes_after(before: int, row: int, piece: int) -> int:
    """The codes of a piece, and the state after it: different for every different past."""
    return hash((before, row, piece))


def codes_of_stream(row: int, num_pieces: int) -> list[int]:
    """The right codes: every piece encoded in order, each from the state after the previous one."""
    pieces = range(num_pieces)
    chain = itertools.accumulate(pieces, lambda now, k: codes_after(now, row, k), initial=0)
    return list(chain)[1:]


@dataclass
class _SimActor:
    stage: Stage
    node: int
    busy_until: float = 0.0
    alive: bool = True
    knows: bool = False
    """The dispatcher knows that its node is draining."""
    alone: set[Key] = field(default_factory=set)
    """Clips that it got as leases of one."""


class FlakyStore(DictStore):
    """A store whose create sometimes fails, with or without effect."""

    def __init__(self, rng: random.Random, chance: float) -> None:
        super().__init__()
        self.rng = rng
        self.chance = chance

    def create(self, key: str, data: bytes) -> bool:
        if self.rng.random() < self.chance:
            if self.rng.random() < 0.5:
                super().create(key, data)
            raise StorageError(f"{key}: no answer")
        return super().create(key, data)


class Simulation:
    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.world = _draw_world(rng)
        self.trouble = _draw_trouble(rng)
        self.store = FlakyStore(rng, self.trouble.store_fails)
        self.now = 0.0
        self.drivers = 0
        self.outcome = ""
        self.seen: Counter[str] = Counter()
        """What went wrong, by kind."""
        self.zombies: list[tuple[Committer, protocol.Commit]] = []
        """Drivers that were replaced without knowing it, and what each would commit next."""
        self.is_retried = False
        self.lost_alone: Counter[Key] = Counter()
        """How often a clip's worker was lost or failed while it held only that clip."""

    def run(self) -> dict[Key, str]:
        """Run drivers until one ends the job; return the fate of every clip in the manifest."""
        for _ in range(60):
            self.drivers += 1
            if self.drivers > 20:
                self.trouble = Trouble()  # let it end
                self.store.chance = 0.0
            try:
                self.outcome = _Driver(self).run()
            except StorageError:  # before it began
                self.outcome = "storage"
            if self.outcome == "done":
                if self.is_retried or self.rng.random() > self.trouble.retry:
                    return self.fates()
                self.is_retried = True
        raise AssertionError(f"never done: last outcome {self.outcome}")

    def fates(self) -> dict[Key, str]:
        fates: dict[Key, str] = {}
        for entry in iter_entries(self.store):
            for one in entry.reopened:
                assert fates.pop((one.ref.row, one.ref.segment)) != "codes"
            for receipt in entry.shards:
                for ref in receipt.clips:
                    assert (ref.row, ref.segment) not in fates, f"{ref} is there twice"
                    fates[ref.row, ref.segment] = "codes"
            for rejected in entry.rejected:
                ref = rejected.ref
                assert (ref.row, ref.segment) not in fates, f"{ref} is there twice"
                fates[ref.row, ref.segment] = (
                    "lost" if rejected.reason in ("worker_lost", "fault", "gave_up") else "bad"
                )
        return fates


class _Driver:
    """One life of the driver, and the actors that die with it."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.rng = sim.rng
        runtime = RuntimeConfig(
            decode=PoolConfig(lease_deadline_s=60.0, max_actors=3),
            encode=PoolConfig(lease_deadline_s=60.0, max_actors=3),
            write=PoolConfig(cpus=0.0, lease_deadline_s=60.0, max_actors=2),
            clips_per_lease=3,
            start_timeout_s=90.0,
        )
        limits = Limits(
            runtime=runtime,
            on_gpu=False,
            clips_per_lease=3,
            shard_bytes=self.rng.choice([100, 1000, 10_000]),
            shard_max_age_s=self.rng.choice([20.0, 1e6]),
            bytes_per_code=1.0,
        )
        self.dispatcher = Dispatcher(limits, ref_of)
        self.committer = claim_output(sim.store, sim.world.num_rows, f"driver-{sim.drivers}")
        self.committer.checkpoint_every = 4
        self.state: ManifestState = self.committer.state
        for zombie, command in sim.zombies:
            try:
                zombie.commit(command.receipts, command.rejected)
            except (Fenced, StorageError):
                sim.seen["fenced"] += 1
            else:
                raise AssertionError("a driver that was replaced has committed")
        sim.zombies = []
        if self.rng.random() < sim.trouble.retry:
            sim.seen["retried"] += self.committer.reopen(list(iter_rejected(sim.store)))
        self.feed = Feed(_Rows(sim.world.num_rows), self.state.committed)
        self.events: list[tuple[float, int, Event]] = []
        self.order = itertools.count()
        self.actors: dict[ActorId, _SimActor] = {}
        self.objects: dict[AttemptId, tuple[int, list[Output]]] = {}
        """Output of each attempt: the node that holds it, and its clips by position."""
        self.states: dict[AttemptId, State] = {}
        """States that encoding pieces left, besides their codes."""
        self.known_lost: set[protocol.StreamId | tuple[int, AttemptId]] = set()
        """Streams that the dispatcher knows have lost something; outputs lost to a write lease."""
        self.reached: Counter[protocol.StreamId] = Counter()
        """Pieces of each streamed clip that were leased to an encoder."""
        self.draining: set[int] = set()
        self.busy_s = 0.0
        """Seconds of encoders that were reported to the dispatcher."""
        self.nodes = {0: 2.0, 1: 2.0, 2: 2.0}
        self.next_node = 3

    def run(self) -> str:
        sim = self.sim
        self.post(0.0, self.capacity())
        self.post(1.0, protocol.Tick())
        if self.rng.random() < sim.trouble.stop:
            self.post(self.rng.uniform(5, 60), protocol.StopRequested(grace_s=10.0))
            sim.seen["stopped"] += 1
        dies_at = (
            sim.now + self.rng.expovariate(1 / 40.0)
            if self.rng.random() < sim.trouble.driver_dies
            else float("inf")
        )
        steps = 0
        while self.events:
            at, _, event = heapq.heappop(self.events)
            sim.now = max(sim.now, at)
            if sim.now >= dies_at:
                sim.seen["driver died"] += 1
                return "killed"
            steps += 1
            assert steps < 50_000, "no progress"
            if isinstance(event, protocol.Tick):
                self.post(1.0, protocol.Tick())
            if isinstance(event, protocol.ActorLost) and not event.node_lost:
                self.blame(self.actors[event.actor])
            if isinstance(event, protocol.LeaseFailed) and event.kind == "inputs_lost":
                self.note_lost(event)
            if isinstance(event, protocol.Draining):
                for actor in self.actors.values():
                    actor.knows |= str(actor.node) in event.nodes
            for command in self.dispatcher.handle(event, sim.now):
                if ended := self.carry_out(command):
                    return ended
        return "stuck"

    def post(self, delay: float, event: Event) -> None:
        heapq.heappush(self.events, (self.sim.now + delay, next(self.order), event))

    def capacity(self) -> protocol.Capacity:
        there = (cpus for node, cpus in self.nodes.items() if node not in self.draining)
        return protocol.Capacity(cpus=sum(there), gpus=0.0)

    def carry_out(self, command: Command) -> str:
        """Do what the dispatcher orders; return how the driver ended, or an empty string."""
        match command:
            case protocol.StartActor():
                self.start(command)
            case protocol.KillActor():
                if command.actor in self.actors:
                    self.actors[command.actor].alive = False
            case protocol.Dispatch():
                self.check_lease(command.lease)
                self.work(command)
            case protocol.Release(attempt, state_only=True):
                assert attempt in self.states, "a state was released twice"
                del self.states[attempt]
            case protocol.Release(attempt):
                self.objects.pop(attempt, None)
                self.states.pop(attempt, None)
            case protocol.FetchPlan():
                self.post(0.1, self.feed.fetch(command.num_items))
            case protocol.Commit():
                return self.commit(command)
            case protocol.Finish():
                if command.outcome == "done":
                    self.check_end()
                return command.outcome
            case protocol.Abort():
                return f"abort {command.kind}"
        return ""

    def check_end(self) -> None:
        """Nothing is kept, and all stages have passed the same clips."""
        assert not self.objects, "outputs are kept that nothing will ever need"
        assert not self.states, "states are kept that nothing will ever need"
        account = self.dispatcher.account
        assert account.useful_s <= self.busy_s + 1e-6
        passed = {account.passed(stage) for stage in STAGES}
        assert len(passed) == 1, f"stages disagree on what is done: {account}"

    def commit(self, command: protocol.Commit) -> str:
        if self.rng.random() < self.sim.trouble.driver_dies / 10:
            self.sim.seen["driver froze"] += 1
            self.sim.zombies.append((self.committer, command))
            return "frozen"
        try:
            self.committer.commit(command.receipts, command.rejected, command.account)
        except Fenced:
            raise AssertionError("fenced, though there is one driver") from None
        except StorageError:
            return "storage"
        self.post(self.rng.uniform(0.01, 2.0), protocol.Committed())
        return ""

    def note_lost(self, event: protocol.LeaseFailed) -> None:
        """Remember what the dispatcher is about to learn, unless it gave this attempt up."""
        flight = self.dispatcher.parts.flights.attempts.get(event.attempt)
        if flight is None:
            return
        if isinstance(flight.lease, protocol.WriteLease):
            self.known_lost.update((flight.lease.lease_id, attempt) for attempt in event.lost)
        elif flight.lease.stream is not None:
            self.known_lost.add(flight.lease.stream)

    def check_lease(self, lease: Lease) -> None:
        """No lease needs what is known to be lost. Pieces go to encoders in order, and a streamed
        clip is neither decoded far ahead nor keeps more than its last state."""
        if isinstance(lease, protocol.WriteLease):
            needed = {(lease.lease_id, pick.source) for pick in lease.picks}
            assert not self.known_lost & needed, "known to be lost"
            return
        if lease.stream is None:
            return
        assert lease.stream not in self.known_lost, "known to be lost"
        assert not self.dispatcher.parts.streams.has_ended(lease), "the streamed clip has ended"
        (item,) = lease.items
        reached = self.reached[lease.stream]
        if isinstance(lease, DecodeLease):
            assert item.piece <= reached + AHEAD, "decoded too far ahead"
            return
        assert item.piece in (reached - 1, reached), "a piece out of order"
        self.reached[lease.stream] = item.piece + 1
        kept = {attempt for attempt, state in self.states.items() if state.stream == lease.stream}
        assert kept == {lease.state} - {None}, "states pile up"

    def start(self, command: protocol.StartActor) -> None:
        fit = [n for n in self.nodes if str(n) not in command.avoid and n not in self.draining]
        if not fit:  # it waits for capacity
            return
        node = self.rng.choice(fit)
        self.actors[command.actor] = _SimActor(command.stage, node)
        if self.rng.random() < self.sim.trouble.lose_actor / 3:
            self.post(2.0, protocol.ActorLost(command.actor, False, "died while starting"))
        elif self.rng.random() < self.sim.trouble.fault / 10:
            self.post(2.0, protocol.SetupFailed(command.actor, "cannot", self.rng.random() < 0.5))
        elif command.zero_cpu or self.rng.random() > 0.1:
            self.post(0.5, protocol.ActorPlaced(command.actor, str(node)))
            self.post(self.rng.uniform(1, 4), protocol.ActorUp(command.actor))

    def work(self, command: protocol.Dispatch) -> None:
        """Decide how this attempt ends, and post what the driver learns about it."""
        trouble, lease, actor = self.sim.trouble, command.lease, self.actors[command.actor]
        assert actor.alive, "dispatched to an actor that the dispatcher killed"
        assert not (actor.node in self.draining and actor.knows), "given work on a draining node"
        begin = max(self.sim.now, actor.busy_until)
        end = begin + self.rng.expovariate(1 / 3.0)
        actor.busy_until = end
        keys = [(item.row, item.segment) for item in lease.items]
        world = self.sim.world
        poison = {"decode": world.poison, "encode": world.poison_encode, "write": set()}
        kills = not poison[lease.stage].isdisjoint(keys) or any(
            world.is_flawed(item, lease.stage, kills=True) for item in lease.items
        )
        late = end - self.sim.now
        roll = self.rng.random()
        if len(keys) == 1:
            actor.alone.add(keys[0])
        if kills:
            self.lose(command.actor, late, node_lost=False)
        elif roll < trouble.lose_actor:
            # Half of them had finished: the answer may arrive before or after the loss.
            if self.rng.random() < 0.5:
                self.post(late + self.rng.uniform(-0.5, 0.5), self.answer(command))
            self.lose(command.actor, late, node_lost=self.rng.random() < 0.7)
        elif roll < trouble.lose_actor + trouble.lose_node and len(self.nodes) > 1:
            self.lose_node(command.actor, late)
        elif roll < trouble.lose_actor + trouble.lose_node + trouble.freeze:
            actor.busy_until += 300.0  # a zombie: killed at its deadline, but it answers anyway
            self.sim.seen["zombie"] += 1
            self.blame(actor)
            self.post(late + 300.0, self.answer(command))
        elif self.rng.random() < trouble.fault:
            self.sim.seen["fault"] += 1
            self.blame(actor)
            self.post(late, protocol.LeaseFailed(command.attempt, "fault", "broke"))
        elif self.rng.random() < trouble.storage:
            self.sim.seen["storage"] += 1
            self.post(late, protocol.LeaseFailed(command.attempt, "storage", "no answer"))
        elif self.rng.random() < trouble.node_trouble:
            self.sim.seen["node trouble"] += 1
            self.post(late, protocol.LeaseFailed(command.attempt, "node", "disk full"))
        elif self.rng.random() < trouble.drain and len(self.nodes) > 1:
            self.post(late, self.answer(command))
            self.drain(command.actor)
        else:
            self.post(late, self.answer(command))

    def drain(self, actor_id: ActorId) -> None:
        """The node of an actor will be taken away in half a minute, and the driver is notified."""
        node = self.actors[actor_id].node
        if node in self.draining or node not in self.nodes:
            return
        self.sim.seen["drained"] += 1
        self.draining.add(node)
        self.post(0.0, protocol.Draining(frozenset(map(str, self.draining))))
        self.post(0.0, self.capacity())
        self.lose_node(actor_id, 30.0)

    def lose(self, actor_id: ActorId, delay: float, *, node_lost: bool) -> None:
        if not node_lost:
            self.sim.seen["actor lost"] += 1
        self.post(delay, protocol.ActorLost(actor_id, node_lost, "killed"))

    def blame(self, actor: _SimActor) -> None:
        self.sim.lost_alone.update(actor.alone)

    def lose_node(self, actor_id: ActorId, delay: float) -> None:
        node = self.actors[actor_id].node
        if node not in self.nodes:  # it is already going
            self.lose(actor_id, delay, node_lost=True)
            return
        del self.nodes[node]
        self.sim.seen["node lost"] += 1
        for actor_id, actor in self.actors.items():
            if actor.node == node and actor.alive:
                self.lose(actor_id, delay + self.rng.uniform(0, 1), node_lost=True)
        self.post(delay + 1.0, self.capacity())
        for attempt, (holder, _) in list(self.objects.items()):
            if holder == node:
                self.objects[attempt] = (-1, [])
        for attempt, state in list(self.states.items()):
            if state.node == node:
                self.states[attempt] = replace(state, node=-1)
                self.sim.seen["state lost"] += 1
        if self.rng.random() < 0.7:
            self.nodes[self.next_node] = 2.0
            self.next_node += 1
            self.post(delay + self.rng.uniform(5, 60), self.capacity())

    def answer(self, command: protocol.Dispatch) -> Event:
        lease, attempt = command.lease, command.attempt
        node = self.actors[command.actor].node
        if isinstance(lease, DecodeLease):
            decoded = [self.decoded(item) for item in lease.items]
            self.objects[attempt] = (node, [output for output, _ in decoded])
            # A source that could not be fetched does not show how many segments it has.
            infos = (
                self.or_failed("decode", info, ref_of(item))
                for item, (_, info) in zip(lease.items, decoded, strict=True)
            )
            return protocol.LeaseDone(attempt, tuple(infos))
        if isinstance(lease, EncodeLease) and lease.stream is not None:
            return self.piece_encoded(command, lease, node)
        if isinstance(lease, EncodeLease):
            if self.is_lost(lease.pick):
                return protocol.LeaseFailed(attempt, "inputs_lost", "gone", (lease.pick.source,))
            outputs = self.read(lease.pick)
            self.check(lease.items, [output.ref for output in outputs])
            self.objects[attempt] = (node, outputs)
            self.busy_s += 2.0
            infos = (
                self.or_failed("encode", self.encoded(output.ref), output.ref) for output in outputs
            )
            return protocol.LeaseDone(attempt, tuple(infos), 2.0)
        lost = tuple(pick.source for pick in lease.picks if self.is_lost(pick))
        if lost:
            return protocol.LeaseFailed(attempt, "inputs_lost", "gone", lost)
        refs = self.joined([output for pick in lease.picks for output in self.read(pick)])
        self.check(lease.items, refs)
        grids = {self.sim.world.grids[ref.row] for ref in refs}
        assert len(grids) == 1, "a shard holds one grid"
        return protocol.LeaseDone(
            attempt, receipt_of(tuple(refs), f"plan-{lease.lease_id}-{attempt}", grids.pop())
        )

    def piece_encoded(self, command: protocol.Dispatch, lease: EncodeLease, node: int) -> Event:
        """Encode one piece of a streamed clip from the state that the dispatcher names."""
        attempt, (item,) = command.attempt, lease.items
        if self.is_lost(lease.pick):
            return protocol.LeaseFailed(attempt, "inputs_lost", "gone")
        (pixels,) = self.read(lease.pick)
        assert (pixels.ref.row, pixels.piece) == (item.row, item.piece), "pixels of another piece"
        before = 0
        if lease.state is not None:
            assert lease.state in self.states, "a state was released while it was needed"
            state = self.states[lease.state]
            if state.node == -1:
                return protocol.LeaseFailed(attempt, "inputs_lost", "gone")
            before = state.value
        codes = codes_after(before, item.row, item.piece)
        self.objects[attempt] = (node, [replace(pixels, codes=codes)])
        if self.sim.world.is_flawed(item, "encode", kills=False):
            return protocol.LeaseDone(
                attempt, (Rejected(pixels.ref, "encode", "non_finite", "bad"),)
            )
        if item.piece < pixels.num_pieces - 1:
            self.states[attempt] = State(node, lease.stream, codes)
        self.busy_s += 1.0
        return protocol.LeaseDone(attempt, (self.encoded(pixels.ref),), 1.0)

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

    def is_lost(self, pick: protocol.Pick) -> bool:
        assert pick.source in self.objects, "an output was released while it was needed"
        return self.objects[pick.source][0] == -1

    def read(self, pick: protocol.Pick) -> list[Output]:
        outputs = self.objects[pick.source][1]
        return [outputs[position] for position in pick.positions]

    @staticmethod
    def check(items: tuple[WorkItem, ...], refs: list[ClipRef]) -> None:
        assert [(i.row, i.segment) for i in items] == [(r.row, r.segment) for r in refs]

    def decoded(self, item: WorkItem) -> tuple[Output, protocol.DecodedInfo | Rejected]:
        world = self.sim.world
        total, num_pieces = world.segments.get(item.row, 1), world.pieces.get(item.row, 1)
        assert item.num_segments in (None, total)
        assert item.num_pieces in (None, num_pieces)
        if item.row in world.bad_rows:
            ref = ref_of(item)
        else:
            ref = ref_of(replace(item, num_segments=total))
        output = Output(ref, item.piece, num_pieces)
        if item.row in world.bad_rows or world.is_flawed(item, "decode", kills=False):
            return output, Rejected(ref, "decode", "corrupt", "bad")
        return output, protocol.DecodedInfo(ref, 5, num_pieces)

    def or_failed(self, stage: Stage, info: Any, ref: ClipRef) -> Any:
        """The answer for a clip, or that the stage failed at it."""
        key = (ref.row, ref.segment)
        if isinstance(info, Rejected):
            return info
        if (stage, key) in self.sim.world.hopeless or (
            self.rng.random() < self.sim.trouble.gives_up
        ):
            self.sim.seen["gave up"] += 1
            self.sim.lost_alone[key] += 1
            return Failed(ref, "gave_up", "broke")
        return info

    def encoded(self, ref: ClipRef) -> protocol.EncodedInfo | Rejected:
        if (ref.row, ref.segment) in self.sim.world.bad_to_encode:
            return Rejected(ref, "encode", "non_finite", "bad")
        return protocol.EncodedInfo(ref, self.sim.world.grids[ref.row], 100)


class _Rows:
    """A stored plan."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows

    def iter_undone(self, done):  # type: ignore[no-untyped-def]
        mask = done(0, self.num_rows)
        yield [item_of(row) for row in range(self.num_rows) if not mask[row]]


def item_of(row: int) -> WorkItem:
    return WorkItem(row=row, row_id=f"id{row}", source_uri=f"mem://{row}")


def receipt_of(
    refs: tuple[ClipRef, ...], name: str = "a", grid: tuple[int, int] = (4, 4)
) -> Receipt:
    return Receipt(
        shard=f"shards/{name}.parquet",
        size_bytes=100,
        sha256="0" * 64,
        num_rows=len(refs),
        num_codes=100 * len(refs),
        num_frames=5 * len(refs),
        grid=grid,
        side_table=f"clips/{name}.parquet",
        side_table_sha256="0" * 64,
        side_table_size_bytes=10,
        clips=refs,
    )


def _draw_world(rng: random.Random) -> World:
    num_rows = rng.randint(1, 14)
    rows = range(num_rows)
    share = rng.choice([0.0, 0.0, 0.1, 0.3])
    pieces = {row: rng.randint(2, 6) for row in rows if rng.random() < share}
    others = [row for row in rows if row not in pieces]
    segments = {row: rng.randint(2, 9) for row in others if rng.random() < 0.15}
    keys = [(row, segment) for row in others for segment in range(segments.get(row, 1))]

    def some(chance: float) -> set[Key]:
        return {key for key in keys if rng.random() < chance}

    return World(
        num_rows=num_rows,
        segments=segments,
        bad_rows={row for row in others if rng.random() < 0.1},
        bad_to_encode=some(0.05),
        poison=some(0.03) if rng.random() < 0.3 else set(),
        poison_encode=some(0.03) if rng.random() < 0.2 else set(),
        hopeless={(stage, key) for stage in ("decode", "encode") for key in some(0.02)}
        if rng.random() < 0.3
        else set(),
        grids={row: rng.choice([(4, 4), (2, 8)]) for row in rows},
        pieces=pieces,
        flaws={
            row: Flaw(rng.choice(["decode", "encode"]), rng.randrange(total), rng.random() < 0.3)
            for row, total in pieces.items()
            if rng.random() < 0.1
        },
    )


def _draw_trouble(rng: random.Random) -> Trouble:
    if rng.random() < 0.1:
        return Trouble()
    level = rng.choice([0.01, 0.05, 0.15])

    def maybe(value: float) -> float:
        return value if rng.random() < 0.5 else 0.0

    return Trouble(
        lose_actor=maybe(level),
        lose_node=maybe(level),
        freeze=maybe(level / 2),
        fault=maybe(level / 3),
        storage=maybe(level / 3),
        driver_dies=maybe(0.7),
        stop=maybe(0.3),
        store_fails=maybe(0.1),
        gives_up=maybe(level / 2),
        node_trouble=maybe(level / 3),
        drain=maybe(level),
        retry=maybe(0.3),
    )
