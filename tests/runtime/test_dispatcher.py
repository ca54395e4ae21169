"""The dispatcher's rules one by one; that they hold together is for the simulation to show."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from tests.runtime.simulation import receipt_of, ref_of
from tokpipe.config.job import PoolConfig, RuntimeConfig
from tokpipe.runtime.dispatch import Dispatcher, Limits
from tokpipe.runtime.dispatch.blame import MAX_FAULTS, RETRY_PAUSE_S
from tokpipe.runtime.dispatch.fleet import MAX_NODE_TROUBLES, MAX_REFUSALS, SLOTS
from tokpipe.runtime.dispatch.leasing import SHARDS_AHEAD
from tokpipe.runtime.dispatch.protocol import (
    Abort,
    ActorLost,
    ActorPlaced,
    ActorRefused,
    ActorUp,
    Capacity,
    Command,
    Commit,
    DecodedInfo,
    DecodeLease,
    Dispatch,
    Draining,
    EncodedInfo,
    EncodeLease,
    FetchPlan,
    KillActor,
    LeaseDone,
    LeaseFailed,
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
from tokpipe.telemetry.account import Account
from tokpipe.types import Failed, Rejected, Stage, WorkItem

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
    return tuple(WorkItem(row=row, row_id=f"id{row}", source_uri=f"mem://{row}") for row in rows)


class Bench:
    """A dispatcher with one actor per stage, up, and every command it gave."""

    def __init__(self, *rows: int, exhausted: bool = True, limits: Limits = LIMITS) -> None:
        self.dispatcher = Dispatcher(limits, ref_of)
        self.now = 0.0
        self.log: list[Command] = []
        self.send(Capacity(8, 0))
        self.send(Planned(items(*rows), exhausted))
        self.bring_up()

    def send(self, event: object) -> list[Command]:
        commands = self.dispatcher.handle(event, self.now)  # type: ignore[arg-type]
        self.log.extend(commands)
        return commands

    def answer(self, dispatch: Dispatch) -> tuple[DecodedInfo, ...] | tuple[EncodedInfo, ...]:
        """What a stage would say of a lease in which all goes well."""
        refs = [ref_of(item) for item in dispatch.lease.items]
        if isinstance(dispatch.lease, DecodeLease):
            return tuple(DecodedInfo(ref, 5) for ref in refs)
        return tuple(EncodedInfo(ref, (4, 4), 1) for ref in refs)

    @property
    def account(self) -> Account:
        return self.dispatcher.ledger.account

    def actor(self, stage: Stage) -> int:
        """The first actor of a stage."""
        return next(i for i, actor in self.dispatcher.fleet.actors.items() if actor.stage == stage)

    def bring_up(self) -> list[Command]:
        waiting = [i for i, actor in self.dispatcher.fleet.actors.items() if not actor.up]
        return [command for actor in waiting for command in self.send(ActorUp(actor))]


def in_flight(bench: Bench) -> set[int]:
    return {attempt for actor in bench.dispatcher.fleet.actors.values() for attempt in actor.leases}


def dispatches(commands: Iterable[Command]) -> list[Dispatch]:
    return [command for command in commands if isinstance(command, Dispatch)]


def test_a_lost_lease_is_given_again_clip_by_clip() -> None:
    bench = Bench(0, 1, 2)
    (first,) = dispatches(bench.log)
    assert [item.row for item in first.lease.items] == [0, 1, 2]
    bench.send(ActorLost(first.actor, False, "killed"))
    again: list[Dispatch] = []
    while len(again) < 3:
        bench.now += 1
        again += dispatches(bench.bring_up())
        if again:
            last = again[-1]
            infos = tuple(DecodedInfo(ref_of(item), 5) for item in last.lease.items)
            again += dispatches(bench.send(LeaseDone(last.attempt, infos)))
            again = [one for one in again if isinstance(one.lease, DecodeLease)]
    assert [len(one.lease.items) for one in again] == [1, 1, 1]


def test_suspects_do_not_wait_for_the_end_of_the_job() -> None:
    pools = LIMITS.runtime.model_copy(update={"decode": PoolConfig(max_actors=2)})
    bench = Bench(*range(100), limits=replace(LIMITS, runtime=pools))
    first = dispatches(bench.log)[0]
    bench.send(ActorLost(first.actor, False, "killed"))
    bench.send(Capacity(2, 0))  # no other in its place: the one that is always busy has to do
    rows: list[int] = []
    for _ in range(24):
        waiting = [d for d in dispatches(bench.log) if d.attempt in in_flight(bench)]
        # Encoders first, so that decoders never run out of credits, and so never out of leases.
        dispatch = min(waiting, key=lambda d: d.lease.stage == "decode")
        rows.extend(item.row for item in dispatch.lease.items)
        bench.send(LeaseDone(dispatch.attempt, bench.answer(dispatch)))
    suspects = {item.row for item in first.lease.items}
    assert suspects <= set(rows), f"{suspects} still wait after {rows}"
    assert 99 not in rows, "all was done: there was nothing to overtake"


def test_a_lost_node_blames_nobody() -> None:
    bench = Bench(0, 1, 2)
    (first,) = dispatches(bench.log)
    bench.send(ActorLost(first.actor, True, "node"))
    (again,) = dispatches(bench.bring_up())
    assert again.lease.items == first.lease.items


def test_a_clip_that_takes_down_three_workers_alone_is_rejected() -> None:
    bench = Bench(7)
    for _ in range(3):
        dispatch = dispatches(bench.log)[-1]
        bench.send(ActorLost(dispatch.actor, False, "killed"))
        bench.now += 1
        bench.bring_up()
    (commit,) = [command for command in bench.log if isinstance(command, Commit)]
    (rejected,) = commit.rejected
    assert (rejected.ref.row, rejected.reason, rejected.attempts) == (7, "worker_lost", 3)


def test_a_missed_deadline_kills_the_actor_and_late_answers_do_not_count() -> None:
    bench = Bench(0, 1)
    (first,) = dispatches(bench.log)
    bench.now = 101.0
    assert KillActor(first.actor) in bench.send(Tick())
    infos = tuple(DecodedInfo(ref_of(item), 5) for item in first.lease.items)
    assert not dispatches(bench.send(LeaseDone(first.attempt, infos)))
    assert bench.account.clips.get("decode", 0) == 0


def test_segments_of_a_film_become_work_once() -> None:
    bench = Bench(3)
    (first,) = dispatches(bench.log)
    (item,) = first.lease.items
    film = DecodedInfo(ref_of(WorkItem(3, "id3", "mem://3", num_segments=6)), 5)
    later = dispatches(bench.send(LeaseDone(first.attempt, (film,))))
    segments = [
        one.segment
        for dispatch in later
        if isinstance(dispatch.lease, DecodeLease)
        for one in dispatch.lease.items
    ]
    assert item.segment == 0
    assert segments == [1, 2, 3, 4, 5]
    assert bench.account.num_extra_clips == 5


def film_bench(num_pieces: int) -> tuple[Bench, list[Dispatch]]:
    """A film whose first piece was just decoded, and what was dispatched on that."""
    bench = Bench(3)
    (first,) = dispatches(bench.log)
    info = DecodedInfo(ref_of(items(3)[0]), 17, num_pieces)
    return bench, dispatches(bench.send(LeaseDone(first.attempt, (info,))))


def encoded_piece(bench: Bench, dispatch: Dispatch) -> list[Command]:
    info = EncodedInfo(ref_of(dispatch.lease.items[0]), (4, 4), 1)
    return bench.send(LeaseDone(dispatch.attempt, (info,)))


def decoded_piece(bench: Bench, dispatch: Dispatch, num_pieces: int) -> list[Command]:
    info = DecodedInfo(ref_of(dispatch.lease.items[0]), 16, num_pieces)
    return bench.send(LeaseDone(dispatch.attempt, (info,)))


def test_a_film_is_encoded_in_order_and_decoded_a_little_ahead() -> None:
    bench, later = film_bench(9)
    pieces = [(d.lease.stage, d.lease.items[0].piece) for d in later]
    assert pieces == [("decode", 1), ("decode", 2), ("encode", 0)]
    for dispatch in later[:2]:
        assert not dispatches(decoded_piece(bench, dispatch, 9)), "decoded too far ahead"
    encode = later[2]
    states: list[int] = []
    for piece in (1, 2):
        commands = encoded_piece(bench, encode)
        released = [one.attempt for one in commands if isinstance(one, ReleaseState)]
        assert released == states, "a state is kept until the next one exists, and no longer"
        states = [encode.attempt]
        (decode,) = [d for d in dispatches(commands) if isinstance(d.lease, DecodeLease)]
        assert decode.lease.items[0].piece == piece + 2
        (encode,) = [d for d in dispatches(commands) if isinstance(d.lease, EncodeLease)]
        assert isinstance(encode.lease, EncodeLease)
        assert (encode.lease.items[0].piece, encode.lease.state) == (piece, states[0])


def test_a_worker_lost_at_a_piece_costs_that_piece() -> None:
    bench, (_, _, encode) = film_bench(9)
    bench.send(ActorLost(encode.actor, False, "killed"))
    bench.now += 1
    (again,) = dispatches(bench.bring_up())
    assert again.lease == encode.lease


def test_a_lost_state_costs_the_film_all_it_had() -> None:
    bench, (ahead, _, encode) = film_bench(9)
    decoded_piece(bench, ahead, 9)
    first = encode.attempt
    encode = dispatches(encoded_piece(bench, encode))[-1]
    commands = bench.send(LeaseFailed(encode.attempt, "inputs_lost", "a node was lost"))
    assert {first, ahead.attempt, encode.attempt} <= released(commands)
    waiting = [d for d in dispatches(bench.log) if d.attempt in in_flight(bench)]
    commands = []
    for dispatch in waiting:  # of pieces that were decoded ahead, for nothing
        commands += decoded_piece(bench, dispatch, 9)
        assert dispatch.attempt in released(commands)
    (again,) = dispatches(commands)
    assert (again.lease.stage, again.lease.items[0].piece) == ("decode", 0)
    assert bench.account.clips.get("decode", 0) == 0


def test_a_refused_piece_rejects_the_film_and_releases_all_of_it() -> None:
    bench, (ahead, _, encode) = film_bench(9)
    ref = ref_of(items(3)[0])
    commands = bench.send(LeaseDone(ahead.attempt, (Rejected(ref, "decode", "corrupt", ""),)))
    assert encode.lease.pick.source in released(commands)  # type: ignore[union-attr]
    assert bench.account.rejected_at["decode"] == 1
    # What is still in flight is moot: its answer is not used, its failure blames nobody.
    assert encode.attempt in released(encoded_piece(bench, encode))
    assert "encode" not in bench.account.clips


def released(commands: Iterable[Command]) -> set[int]:
    return {command.attempt for command in commands if isinstance(command, Release)}


def test_trouble_with_a_store_rejects_nothing_and_ends_the_job_at_last() -> None:
    bench = Bench(0)
    commands: list[Command] = []
    for _ in range(3):
        commands = bench.send(LeaseFailed(dispatches(bench.log)[-1].attempt, "storage", "503"))
    assert commands[-1] == Abort("storage", "503")
    assert not any(isinstance(command, Commit) for command in bench.log)


def test_actors_that_never_start_end_the_job() -> None:
    bench = Bench(0)
    for attempt in range(MAX_REFUSALS):
        encoder = bench.actor("encode")
        commands = bench.send(ActorRefused(encoder, "weights: no such key"))
        if attempt < MAX_REFUSALS - 1:
            assert not any(isinstance(c, StartActor) for c in commands), "no pause before the next"
            bench.now += 30
            bench.send(Tick())
    (abort,) = [command for command in commands if isinstance(command, Abort)]
    assert "weights: no such key" in abort.message


def test_an_actor_that_needs_no_room_is_left_alone_while_it_starts() -> None:
    dispatcher = Dispatcher(LIMITS, ref_of)
    commands = dispatcher.handle(Capacity(8, 0), 0.0)
    for now in range(1, 200):  # a slow disk, from which torch takes minutes to import
        commands += dispatcher.handle(Tick(), float(now))
    started = [one for one in commands if isinstance(one, StartActor)]
    assert [one.zero_cpu for one in started if one.stage == "encode"] == [False, True]


def test_faults_without_end_are_not_taken_for_bad_clips() -> None:
    bench = Bench(*range(100))
    for _ in range(MAX_FAULTS):
        bench.now += 1
        bench.send(LeaseFailed(dispatches(bench.log)[-1].attempt, "fault", "no disk"))
        bench.bring_up()
    assert isinstance(bench.log[-1], Abort)
    assert not any(isinstance(command, Commit) for command in bench.log)


def test_the_plan_is_asked_for_in_small_pieces() -> None:
    dispatcher = Dispatcher(LIMITS, ref_of)
    commands = dispatcher.handle(Capacity(1000, 0), 0.0)
    (fetch,) = [command for command in commands if isinstance(command, FetchPlan)]
    assert fetch.num_items <= 100


def test_a_lonely_rejection_is_committed_without_waiting_for_the_end() -> None:
    bench = Bench(0, exhausted=False)
    (first,) = dispatches(bench.log)
    bench.send(LeaseDone(first.attempt, (Rejected(ref_of(items(0)[0]), "decode", "empty", ""),)))
    bench.now = LIMITS.shard_max_age_s + 1
    assert any(isinstance(command, Commit) for command in bench.send(Tick()))


def test_a_clip_that_a_stage_gave_up_is_tried_again_after_a_pause() -> None:
    bench = Bench(0, 1)
    (decode,) = dispatches(bench.log)
    refs = [ref_of(item) for item in decode.lease.items]
    failed = Failed(refs[1], "unreachable", "no route", "ClientError")
    bench.send(LeaseDone(decode.attempt, (DecodedInfo(refs[0], 5), failed)))
    for pause in (RETRY_PAUSE_S, 4 * RETRY_PAUSE_S):
        bench.now += pause - 0.1
        assert not any(isinstance(d.lease, DecodeLease) for d in dispatches(bench.send(Tick())))
        bench.now += 0.2
        (again,) = (d for d in dispatches(bench.send(Tick())) if isinstance(d.lease, DecodeLease))
        assert [item.row for item in again.lease.items] == [1]
        bench.send(LeaseDone(again.attempt, (failed,)))
    (rejected,) = bench.dispatcher.settlement._rejected
    assert (rejected.reason, rejected.error, rejected.attempts) == ("unreachable", "ClientError", 3)


def test_pixels_of_a_clip_that_failed_to_encode_are_kept_for_the_next_try() -> None:
    bench = Bench(0, 1)
    (decode,) = dispatches(bench.log)
    bench.send(LeaseDone(decode.attempt, bench.answer(decode)))
    encode = dispatches(bench.log)[-1]
    good, bad = bench.answer(encode)
    failed = Failed(bad.ref, "encode_error", "broke")
    assert isinstance(good, EncodedInfo)
    commands = bench.send(LeaseDone(encode.attempt, (good, failed), 2.0))
    assert Release(decode.attempt) not in commands
    bench.now += RETRY_PAUSE_S + 0.1
    again = dispatches(bench.send(Tick()))[-1]
    assert isinstance(again.lease, EncodeLease)
    assert again.lease.pick == Pick(decode.attempt, (1,))
    assert Release(decode.attempt) in bench.send(LeaseDone(again.attempt, bench.answer(again), 1.0))


def test_stages_that_give_up_everything_end_the_job() -> None:
    bench = Bench(*range(200))
    for _ in range(MAX_FAULTS):
        dispatch = next(
            command
            for command in bench.log
            if isinstance(command, Dispatch) and command.attempt in in_flight(bench)
        )
        refs = [ref_of(item) for item in dispatch.lease.items]
        failed = tuple(Failed(ref, "unreachable", "the network is down") for ref in refs)
        bench.send(LeaseDone(dispatch.attempt, failed))
        bench.send(Tick())
    (abort,) = (command for command in bench.log if isinstance(command, Abort))
    assert "30 leases in a row came to nothing" in abort.message
    assert "the network is down" in abort.message


def test_a_node_that_will_go_gets_nothing_new_and_what_it_holds_is_written() -> None:
    bench = Bench(0, 1, 2, 3, exhausted=False)
    encoder = next(
        i for i, actor in bench.dispatcher.fleet.actors.items() if actor.stage == "encode"
    )
    bench.send(ActorPlaced(encoder, "node-a"))
    (decode,) = dispatches(bench.log)
    bench.send(LeaseDone(decode.attempt, bench.answer(decode)))
    encode = dispatches(bench.log)[-1]
    assert encode.actor == encoder
    started = bench.send(Draining(frozenset({"node-a"})))
    assert any(isinstance(c, StartActor) and c.stage == "encode" for c in started)
    # Its codes would be lost with it, so they are written although the shard is not full.
    after = bench.send(LeaseDone(encode.attempt, bench.answer(encode), 3.0))
    assert any(isinstance(d.lease, WriteLease) for d in dispatches(after))
    assert KillActor(encoder) in after
    bench.send(Planned(items(4, 5), exhausted=True))
    assert not any(d.actor == encoder for d in dispatches(bench.bring_up()))


def test_codes_in_open_shards_are_written_when_any_node_will_go() -> None:
    bench = Bench(0, 1, exhausted=False)
    (decode,) = dispatches(bench.log)
    bench.send(LeaseDone(decode.attempt, bench.answer(decode)))
    encode = dispatches(bench.log)[-1]
    bench.send(LeaseDone(encode.attempt, bench.answer(encode), 3.0))
    assert not any(isinstance(d.lease, WriteLease) for d in dispatches(bench.log))
    (write,) = dispatches(bench.send(Draining(frozenset({"elsewhere"}))))
    assert isinstance(write.lease, WriteLease)
    assert write.lease.encode_s == 3.0
    assert not dispatches(bench.send(Draining(frozenset({"elsewhere"}))))


def test_trouble_of_a_node_blames_no_clip_and_keeps_actors_off_it() -> None:
    bench = Bench(0, 1, 2)
    decoder = next(
        i for i, actor in bench.dispatcher.fleet.actors.items() if actor.stage == "decode"
    )
    bench.send(ActorPlaced(decoder, "full-disk"))
    (decode,) = dispatches(bench.log)
    commands = bench.send(LeaseFailed(decode.attempt, "node", "no space left"))
    assert KillActor(decoder) in commands
    bench.now += 5
    (start,) = (c for c in bench.send(Tick()) if isinstance(c, StartActor))
    assert start.avoid == ("full-disk",)
    (again,) = dispatches(bench.bring_up())
    assert [item.row for item in again.lease.items] == [0, 1, 2]
    assert not bench.dispatcher.blame._strikes


def test_trouble_of_all_nodes_ends_the_job() -> None:
    bench = Bench(0)
    for _ in range(MAX_NODE_TROUBLES):
        bench.now += 100
        bench.send(Tick())
        bench.bring_up()
        dispatch = dispatches(bench.log)[-1]
        bench.send(LeaseFailed(dispatch.attempt, "node", "no space left"))
    (abort,) = (command for command in bench.log if isinstance(command, Abort))
    assert "their nodes had trouble of their own" in abort.message


def test_seconds_of_encoders_are_useful_once_committed_and_lost_when_made_again() -> None:
    bench = Bench(0, 1)
    (decode,) = dispatches(bench.log)
    bench.send(LeaseDone(decode.attempt, bench.answer(decode)))
    encode = dispatches(bench.log)[-1]
    bench.send(LeaseDone(encode.attempt, bench.answer(encode), 6.0))
    write = dispatches(bench.log)[-1]
    assert isinstance(write.lease, WriteLease)
    bench.send(LeaseFailed(write.attempt, "inputs_lost", "gone", (encode.attempt,)))
    assert (bench.account.useful_s, bench.account.lost_s) == (0.0, 6.0)
    for _ in range(3):
        last = dispatches(bench.log)[-1]
        if isinstance(last.lease, WriteLease):
            refs = tuple(ref_of(item) for item in last.lease.items)
            bench.send(LeaseDone(last.attempt, receipt_of(refs)))
        else:
            bench.send(LeaseDone(last.attempt, bench.answer(last), 5.0))
    (commit,) = (command for command in bench.log if isinstance(command, Commit))
    assert (commit.account.useful_s, commit.account.lost_s) == (5.0, 6.0)


def finished(bench: Bench, dispatch: Dispatch, busy_s: float) -> list[Command]:
    return bench.send(LeaseDone(dispatch.attempt, bench.answer(dispatch), busy_s))


def test_leases_grow_where_clips_take_little_time_and_only_there() -> None:
    for busy_s, clips in ((0.001, 32), (0.5, 8), (10.0, 4)):
        limits = replace(LIMITS, clips_per_lease=32, usual_clips=4, shard_bytes=10**9)
        bench = Bench(*range(1000), limits=limits)
        for _ in range(60):
            waiting = [d for d in dispatches(bench.log) if d.attempt in in_flight(bench)]
            dispatch = min(waiting, key=lambda d: d.lease.stage == "decode")
            finished(bench, dispatch, busy_s * len(dispatch.lease.items) / 4)
        decodes = [d for d in dispatches(bench.log) if isinstance(d.lease, DecodeLease)]
        assert len(decodes[0].lease.items) == 4
        assert len(decodes[-1].lease.items) == clips


def test_encoders_wait_for_a_store_that_takes_shards_slowly() -> None:
    bench = Bench(*range(400), exhausted=False, limits=replace(LIMITS, shard_bytes=1))
    for _ in range(200):
        waiting = [
            d
            for d in dispatches(bench.log)
            if d.attempt in in_flight(bench) and d.lease.stage != "write"
        ]
        if not waiting:
            break
        finished(bench, waiting[0], 1.0)
    held_by_the_encoder = SLOTS["encode"]
    assert bench.dispatcher.queues.num_shards <= SHARDS_AHEAD + 1 + held_by_the_encoder
    before = len(bench.log)
    for _ in range(4):
        write = [d for d in dispatches(bench.log) if d.lease.stage == "write"][-1]
        refs = tuple(ref_of(item) for item in write.lease.items)
        bench.send(LeaseDone(write.attempt, receipt_of(refs)))
    assert any(d.lease.stage == "encode" for d in dispatches(bench.log[before:]))


def test_seconds_are_told_apart_by_what_they_went_into() -> None:
    bench = Bench(0)
    (decode,) = dispatches(bench.log)
    bench.now += 5
    bench.send(LeaseDone(decode.attempt, bench.answer(decode), 4.0, download_s=1.0))
    encode = dispatches(bench.log)[-1]
    bench.now += 3
    finished(bench, encode, 2.0)
    spent = bench.account.spent_s
    assert (spent["download"], spent["decode"]) == (1.0, 3.0)
    assert (spent["transfer"], spent["encode"]) == (1.0, 2.0)


def test_on_cpus_one_decoder_asks_for_no_room_and_its_successor_neither() -> None:
    dispatcher = Dispatcher(LIMITS, ref_of)
    commands = dispatcher.handle(Capacity(4, 0), 0.0)
    (decoder,) = (c for c in commands if isinstance(c, StartActor) and c.stage == "decode")
    assert decoder.zero_cpu
    assert not any(c.zero_cpu for c in commands if isinstance(c, StartActor) and c != decoder)
    commands = dispatcher.handle(ActorLost(decoder.actor, True, "node"), 1.0)
    (again,) = (c for c in commands if isinstance(c, StartActor))
    assert (again.stage, again.zero_cpu) == ("decode", True)


def test_pools_follow_what_clips_were_measured_to_take() -> None:
    pools = RuntimeConfig(write=PoolConfig(cpus=0, max_actors=1))
    bench = Bench(*range(1000), limits=replace(LIMITS, runtime=pools, shard_bytes=10**9))
    assert bench.dispatcher.fleet._num == {"decode": 2, "encode": 7, "write": 1}
    for _ in range(60):
        waiting = [d for d in dispatches(bench.log) if d.attempt in in_flight(bench)]
        dispatch = min(waiting, key=lambda d: d.lease.stage == "decode")
        finished(bench, dispatch, 1.0)  # both stages need as much
    bench.now += 100
    bench.send(Capacity(8, 0))
    assert bench.dispatcher.fleet._num == {"decode": 4, "encode": 5, "write": 1}


def notes(bench: Bench) -> list[tuple[str, bool]]:
    return [(one.event, one.is_warning) for one in bench.log if isinstance(one, Note)]


def test_what_happens_is_told() -> None:
    bench = Bench(0)
    assert notes(bench) == [("pools_resized", False), *3 * [("actor_up", False)]]
    (decode,) = dispatches(bench.log)
    bench.log.clear()
    bench.send(LeaseFailed(decode.attempt, "fault", "it raised"))
    assert notes(bench) == [("lease_failed", True), ("clip_retried", False)]
    (failed, retried) = (one for one in bench.log if isinstance(one, Note))
    assert failed.fields == {
        "stage": "decode",
        "actor": decode.actor,
        "kind": "fault",
        "reason": "it raised",
        "num_clips": 1,
    }
    assert retried.fields["clip_id"] == ref_of(items(0)[0]).clip_id
    assert (retried.fields["reason"], retried.fields["attempts"]) == ("fault", 1)

    bench.bring_up()
    bench.log.clear()
    (encoder,) = (i for i, one in bench.dispatcher.fleet.actors.items() if one.stage == "encode")
    bench.send(ActorPlaced(encoder, "node-a"))
    bench.send(ActorLost(encoder, True, "its worker process died"))
    assert notes(bench)[0] == ("actor_lost", True)
    assert bench.account.num_lost_nodes == 1
    bench.log.clear()
    bench.send(Draining(frozenset({"node-b"})))
    bench.send(Draining(frozenset({"node-b"})))
    bench.send(Capacity(2, 0))  # changes no pool, since each may have one actor
    bench.send(StopRequested(1.0))
    assert notes(bench) == [
        ("nodes_draining", True),
        ("stop_requested", False),
    ]


def test_rows_are_opened_once() -> None:
    bench = Bench(0, 1, 2)
    (decode,) = dispatches(bench.log)
    refs = [ref_of(item) for item in decode.lease.items]
    film = DecodedInfo(replace(refs[0], num_segments=4), 5)
    failed = Failed(refs[1], "unreachable", "no answer")
    bench.send(LeaseDone(decode.attempt, (film, failed, DecodedInfo(refs[2], 5))))
    assert (bench.account.num_opened, bench.account.num_extra_clips) == (2, 3)
    assert bench.account.retried == {"decode": 1}
