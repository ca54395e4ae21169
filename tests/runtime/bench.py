"""A dispatcher whose cluster is played by hand, event by event."""

from collections.abc import Iterable
from typing import Any, TypeVar

from tests.runtime.simulated_world import item_of, receipt_of, ref_of
from tokpipe.config.job import PoolConfig, RuntimeConfig
from tokpipe.runtime.dispatch import Dispatcher, Limits, protocol
from tokpipe.telemetry.account import Account
from tokpipe.types import ClipRef, Stage, WorkItem

C = TypeVar("C", bound=protocol.Command)
LIMITS = Limits(
    runtime=RuntimeConfig(
        decode=PoolConfig(max_actors=1, lease_deadline_s=100),
        encode=PoolConfig(max_actors=1, lease_deadline_s=100),
        write=PoolConfig(cpus=0, max_actors=1),
        clips_per_lease=4,
    ),
    on_gpu=False,
    clips_per_lease=4,
    shard_bytes=1000,
    shard_max_age_s=50,
    bytes_per_code=1.0,
)


def items(*rows: int) -> tuple[WorkItem, ...]:
    return tuple(map(item_of, rows))


def one_node(cpus: float, gpus: float = 0) -> protocol.Capacity:
    """A cluster of one node that has this."""
    return protocol.Capacity({"node": protocol.Room(cpus, gpus)})


class Bench:
    """A dispatcher with one actor per stage, up, and every command it emitted."""

    def __init__(self, *rows: int, exhausted: bool = True, limits: Limits = LIMITS) -> None:
        self.dispatcher = Dispatcher(limits, ref_of)
        self.now = 0.0
        self.log: list[protocol.Command] = []
        self.send(one_node(8))
        self.send(protocol.Planned(items(*rows), exhausted))
        self.bring_up()

    # --- events ---------------------------------------------------------------------------------

    def send(self, event: protocol.Event) -> list[protocol.Command]:
        commands = self.dispatcher.handle(event, self.now)
        self.log.extend(commands)
        return commands

    def tick(self, seconds: float = 0.0) -> list[protocol.Command]:
        self.now += seconds
        return self.send(protocol.Tick())

    def bring_up(self) -> list[protocol.Command]:
        """Let every actor that is starting come up."""
        starting = [i for i, actor in self.dispatcher.fleet.actors.items() if not actor.up]
        return [command for actor in starting for command in self.send(protocol.ActorUp(actor))]

    def done(
        self, dispatch: protocol.Dispatch, *infos: Any, **seconds: float
    ) -> list[protocol.Command]:
        """Answer a lease: with ``infos``, or as if all went well."""
        answer: Any = infos or tuple(map(answer_for(dispatch), refs_of(dispatch)))
        if dispatch.lease.stage == "write":
            answer = receipt_of(tuple(refs_of(dispatch)))
        done: Any = protocol.LeaseDone
        return self.send(done(dispatch.attempt, answer, **seconds))

    def fail(
        self, dispatch: protocol.Dispatch, kind: Any, why: str = "broke", *lost: int
    ) -> list[protocol.Command]:
        return self.send(protocol.LeaseFailed(dispatch.attempt, kind, why, lost))

    def lose(self, actor: int, *, with_node: bool = False) -> list[protocol.Command]:
        how: protocol.Loss = "node_died" if with_node else "died"
        return self.send(protocol.ActorLost(actor, how, "killed"))

    # --- what followed ----------------------------------------------------------------------

    def in_flight(self, *stages: Stage) -> list[protocol.Dispatch]:
        """Attempts that are out, of these stages or of all, oldest first."""
        actors = self.dispatcher.fleet.actors.values()
        attempts = {attempt for actor in actors for attempt in actor.leases}
        return [
            one
            for one in only(protocol.Dispatch, self.log)
            if one.attempt in attempts and (not stages or one.lease.stage in stages)
        ]

    def play(self, num_leases: int, busy_s: float = 0.0) -> None:
        """Finish leases. Encoders first, so that decoders never run out of credits."""
        for _ in range(num_leases):
            one = min(self.in_flight(), key=lambda one: one.lease.stage == "decode")
            self.done(one, busy_s=busy_s * len(one.lease.items))

    def actor(self, stage: Stage) -> int:
        """The first actor of a stage."""
        return next(i for i, actor in self.dispatcher.fleet.actors.items() if actor.stage == stage)

    @property
    def account(self) -> Account:
        return self.dispatcher.out.account

    @property
    def notes(self) -> list[tuple[str, bool]]:
        return [(one.event, one.is_warning) for one in only(protocol.Note, self.log)]


def refs_of(dispatch: protocol.Dispatch) -> list[ClipRef]:
    return [ref_of(item) for item in dispatch.lease.items]


def answer_for(dispatch: protocol.Dispatch) -> Any:
    if dispatch.lease.stage == "decode":
        return lambda ref: protocol.DecodedInfo(ref, 5)
    return lambda ref: protocol.EncodedInfo(ref, (4, 4), 1)


def only(kind: type[C], commands: Iterable[protocol.Command]) -> list[C]:
    return [command for command in commands if isinstance(command, kind)]


def released(commands: Iterable[protocol.Command]) -> set[int]:
    releases = only(protocol.Release, commands)
    return {one.attempt for one in releases if one.part != protocol.STATE}
