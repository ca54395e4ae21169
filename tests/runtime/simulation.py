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
from functools import partial

from tests.formats.formats_helpers import DictStore, claimed
from tests.runtime.simulated_cluster import Cluster
from tests.runtime.simulated_world import Key, Scenario, Trouble, item_of, ref_of
from tokpipe.config.job import ChunkingConfig, PoolConfig, RuntimeConfig
from tokpipe.config.traits import TokenizerTraits
from tokpipe.errors import Fenced, StorageError
from tokpipe.formats.manifest import iter_entries, iter_rejected
from tokpipe.plan import PlanReader
from tokpipe.runtime.assemble import Feed
from tokpipe.runtime.commit import Committer
from tokpipe.runtime.dispatch import Dispatcher, Limits, protocol
from tokpipe.runtime.dispatch.streams import AHEAD
from tokpipe.stages.chunks import plan_chunks
from tokpipe.types import STAGES

PLAN = partial(
    plan_chunks,
    chunking=ChunkingConfig(chunk_frames=9),
    traits=TokenizerTraits(temporal_stride=4, spatial_stride=8, codebook_size=16),
)
"""The chunks of a clip: clips of 5 and 9 frames have one, those of 14 have one of each length."""


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


class Simulation(Scenario):
    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.store = FlakyStore(self.rng, self.trouble.store_fails)
        self.drivers = 0
        self.zombies: list[tuple[Committer, protocol.Commit]] = []
        """Drivers that were replaced without knowing it, and what each would commit next."""
        self.is_retried = False

    def run(self) -> dict[Key, str]:
        """Run drivers until one ends the job; return the fate of every clip in the manifest."""
        outcome = ""
        for _ in range(60):
            self.drivers += 1
            if self.drivers > 20:
                self.trouble = Trouble()  # let it end
                self.store.chance = 0.0
            try:
                outcome = _Driver(self).run()
            except StorageError:  # before it began
                outcome = "storage"
            if outcome == "done":
                if self.is_retried or self.rng.random() > self.trouble.retry:
                    return self.fates()
                self.is_retried = True
        raise AssertionError(f"never done: last outcome {outcome}")

    def fates(self) -> dict[Key, str]:
        fates: dict[Key, str] = {}
        for entry in iter_entries(self.store):
            for one in entry.reopened:
                assert fates.pop((one.ref.row, one.ref.segment)) != "codes"
            settled = [(ref, "codes") for receipt in entry.shards for ref in receipt.clips]
            for rejected in entry.rejected:
                is_lost = rejected.reason in ("worker_lost", "fault", "gave_up")
                settled.append((rejected.ref, "lost" if is_lost else "bad"))
            for ref, fate in settled:
                assert (ref.row, ref.segment) not in fates, f"{ref} is there twice"
                fates[ref.row, ref.segment] = fate
        return fates


class _Driver:
    """One life of the driver, and the actors that die with it."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.rng = sim.rng
        pool = PoolConfig(lease_deadline_s=60.0, max_actors=3)
        runtime = RuntimeConfig(
            decode=pool,
            encode=pool,
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
            frame_sizes=((8, 8), (8, 16)),
            batch_chunks=self.rng.choice([1, 2, 3]),
            plan_chunks=PLAN,
        )
        self.batch_chunks = limits.batch_chunks
        self.dispatcher = Dispatcher(limits, ref_of)
        num_rows = len(sim.world.grids)
        self.committer = claimed(sim.store, num_rows, f"driver-{sim.drivers}")
        self.committer.checkpoint_every = 4
        for zombie, command in sim.zombies:
            try:
                zombie.commit(command.receipts, command.rejected)
            except (Fenced, StorageError):
                sim.seen["fenced"] += 1
            else:
                raise AssertionError("a driver that was replaced has committed")
        sim.zombies = []
        if self.rng.random() < sim.trouble.retry:
            self.committer.reopen(rejected := list(iter_rejected(sim.store)))
            sim.seen["retried"] += len(rejected)
        self.feed = Feed(_Rows(num_rows), self.committer.state.committed)
        self.events: list[tuple[float, int, protocol.Event]] = []
        self.order = itertools.count()
        self.cluster = Cluster(sim, self.post)
        self.known_lost: set[protocol.StreamId | tuple[int, protocol.AttemptId]] = set()
        """Streams that the dispatcher knows have lost something; outputs lost to a write lease."""
        self.reached: Counter[protocol.StreamId] = Counter()
        """Pieces of each streamed clip that were leased to an encoder."""
        self.encoded: set[Key] = set()
        """Clips that were leased to an encoder."""

    def run(self) -> str:
        sim = self.sim
        self.post(0.0, self.cluster.capacity())
        self.post(1.0, protocol.Tick())
        if self.rng.random() < sim.trouble.stop:
            self.post(self.rng.uniform(5, 60), protocol.StopRequested(grace_s=10.0))
            sim.seen["stopped"] += 1
        dies_at = float("inf")
        if self.rng.random() < sim.trouble.driver_dies:
            dies_at = sim.now + self.rng.expovariate(1 / 40.0)
        for _ in range(50_000):
            if not self.events:
                return "stuck"
            at, _, event = heapq.heappop(self.events)
            sim.now = max(sim.now, at)
            if sim.now >= dies_at:
                sim.seen["driver died"] += 1
                return "killed"
            if isinstance(event, protocol.Capacity):  # one look at the nodes shows both
                event = event._replace(draining=frozenset(self.cluster.draining))
            self.before(event)
            for command in self.dispatcher.handle(event, sim.now):
                if ended := self.carry_out(command):
                    return ended
        raise AssertionError("no progress")

    def post(self, delay: float, event: protocol.Event) -> None:
        heapq.heappush(self.events, (self.sim.now + delay, next(self.order), event))

    def before(self, event: protocol.Event) -> None:
        """Remember what the dispatcher is about to learn."""
        actors = self.cluster.actors
        match event:
            case protocol.Tick():
                self.post(1.0, protocol.Tick())
            case protocol.ActorLost(actor, "died"):
                self.cluster.blame(actors[actor])
            case protocol.Capacity(draining=nodes):
                for one in actors.values():
                    one.is_draining |= str(one.node) in nodes
            case protocol.LeaseFailed(attempt, "inputs_lost", lost=lost):
                flight = self.dispatcher.fleet.attempts.get(attempt)
                if flight is None:  # it has given this attempt up
                    return
                if flight.lease.stage == "write":
                    self.known_lost.update((flight.lease.lease_id, source) for source in lost)
                elif flight.lease.stream is not None:
                    self.known_lost.add(flight.lease.stream)

    def carry_out(self, command: protocol.Command) -> str:
        """Do what the dispatcher orders; return how the driver ended, or an empty string."""
        match command:
            case protocol.StartActor():
                self.cluster.start(command)
            case protocol.KillActor(actor) if actor in self.cluster.actors:
                self.cluster.actors[actor].alive = False
            case protocol.Dispatch():
                self.check_lease(command.lease)
                if command.lease.stage == "encode" and command.lease.stream is None:
                    self.check_batches(command)
                self.cluster.work(command)
            case protocol.Release():
                self.cluster.release(command)
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

    def check_lease(self, lease: protocol.Lease) -> None:
        """No lease needs what is known to be lost. Pieces go to encoders in order, and a streamed
        clip is neither decoded far ahead nor keeps more than its last state."""
        if lease.stage == "write":
            needed = {(lease.lease_id, place.source) for place in lease.places}
            assert not self.known_lost & needed, "known to be lost"
            return
        if lease.stream is None:
            return
        assert lease.stream not in self.known_lost, "known to be lost"
        assert not self.dispatcher.streams.has_ended(lease), "the streamed clip has ended"
        (item,) = lease.items
        reached = self.reached[lease.stream]
        if lease.stage == "decode":
            assert item.piece <= reached + AHEAD, "decoded too far ahead"
            return
        assert item.piece in (reached - 1, reached), "a piece out of order"
        self.reached[lease.stream] = item.piece + 1
        states = self.cluster.states.items()
        kept = {attempt for attempt, (stream, _) in states if stream == lease.stream}
        assert kept == {lease.state} - {None}, "states pile up"

    def check_batches(self, command: protocol.Dispatch) -> None:
        """The clips of an encode lease fill its batches, unless the encoder would be idle or one of
        them was there before."""
        items, world = command.lease.items, self.sim.world
        plans = [{one.num_input_frames for one in PLAN(world.num_frames[i.row])} for i in items]
        kinds = {(world.sizes[i.row], *plan) for i, plan in zip(items, plans, strict=True)}
        assert len(kinds) == 1, "clips of several kinds share a lease"
        keys = {(item.row, item.segment) for item in items}
        is_full = len(items) >= 3 or len(items) % self.batch_chunks == 0
        if not is_full and not keys & self.encoded:
            actor = self.dispatcher.fleet.actors.get(command.actor)
            assert actor is None or list(actor.leases) == [command.attempt], "a part of a batch"
            self.sim.seen["part of a batch"] += 1
        self.encoded |= keys

    def check_end(self) -> None:
        """Nothing is kept, and all stages have passed the same clips."""
        assert not self.cluster.outputs, "outputs are kept that nothing will ever need"
        assert not self.cluster.states, "states are kept that nothing will ever need"
        account = self.dispatcher.out.account
        assert account.useful_s <= self.cluster.encode_s + 1e-6
        passed = {account.passed(stage) for stage in STAGES}
        assert len(passed) == 1, f"stages disagree on what is done: {account}"


class _Rows(PlanReader):
    """A stored plan."""

    def __init__(self, num_rows: int) -> None:
        self.count = num_rows

    def iter_undone(self, done):  # type: ignore[no-untyped-def]
        mask = done(0, self.count)
        yield [item_of(row) for row in range(self.count) if not mask[row]]
