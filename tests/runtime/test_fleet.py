"""Which actors exist, who has room, and which nodes are avoided."""

from dataclasses import replace

import pytest

from tests.runtime.bench import LIMITS, Bench, items, one_node, only
from tests.runtime.simulated_world import ref_of
from tokpipe.config.job import PoolConfig, RuntimeConfig
from tokpipe.runtime.dispatch import Dispatcher, protocol
from tokpipe.runtime.dispatch.blame import MAX_TROUBLE_S
from tokpipe.runtime.dispatch.fleet import INPUTS_WITHIN_S, MAX_SETUP_FAILURES, Fleet
from tokpipe.runtime.dispatch.outbox import Outbox
from tokpipe.types import STAGES, Stage

LEASE = protocol.Lease("decode", ())


def fleet_of(num_decoders: int, out: Outbox | None = None) -> Fleet:
    fleet = Fleet(LIMITS, out or Outbox())
    fleet.fill("decode", num_decoders, one_shares=False)
    for actor in fleet.actors:
        fleet.came_up(protocol.ActorUp(actor))
    return fleet


def nodes(*names: str) -> dict[str, protocol.Room]:
    return dict.fromkeys(names, protocol.Room(8))


def test_idle_actors_come_before_those_with_a_free_slot() -> None:
    fleet = fleet_of(2, out := Outbox())
    given = []
    for _ in range(4):
        given.append(fleet.actor_with_room("decode"))
        fleet.assign(LEASE, given[-1])  # type: ignore[arg-type]
    assert given == [1, 2, 1, 2]
    assert fleet.actor_with_room("decode") is None
    out.now = 5.0
    attempts = [one.attempt for one in only(protocol.Dispatch, out.take())]
    assert fleet.end(attempts[1])[1] == 5.0  # type: ignore[index]
    assert fleet.same_actor("decode", 2) == 2
    assert fleet.same_actor("decode", 1) is None, "it is worth waiting for the source file"


def test_the_actors_that_cost_least_are_removed_first() -> None:
    fleet = fleet_of(3)
    fleet.assign(LEASE, 3)
    fleet.start("decode", zero_cpu=False)
    assert fleet.surplus("decode", 1) == [5, 2, 1], "not up yet, then idle, newest first"


def test_a_missed_deadline_kills_the_actor_and_late_answers_do_not_count() -> None:
    bench = Bench(0, 1)
    (first,) = bench.in_flight()
    assert protocol.KillActor(first.actor) in bench.tick(101.0)
    bench.done(first)
    assert not bench.in_flight()
    assert "decode" not in bench.account.clips


def test_the_job_ends_if_actors_never_start() -> None:
    bench = Bench(0)
    for attempt in range(MAX_SETUP_FAILURES):
        failed = protocol.ActorLost(bench.actor("encode"), "raised", "weights: no such key")
        commands = bench.send(failed)
        if attempt < MAX_SETUP_FAILURES - 1:
            assert not only(protocol.StartActor, commands), "no pause before the next"
            bench.tick(30)
    (abort,) = only(protocol.Abort, commands)
    assert "weights: no such key" in abort.message


def test_an_actor_with_zero_cpus_is_not_replaced_while_it_starts() -> None:
    dispatcher = Dispatcher(LIMITS, ref_of)
    commands = dispatcher.handle(one_node(8), 0.0)
    for now in range(1, 200):  # a slow disk, from which torch takes minutes to import
        commands += dispatcher.handle(protocol.Tick(), float(now))
    started = only(protocol.StartActor, commands)
    assert [one.zero_cpu for one in started if one.stage == "encode"] == [False, True]


def test_on_cpus_one_decoder_has_zero_cpus_and_so_does_its_replacement() -> None:
    dispatcher = Dispatcher(LIMITS, ref_of)
    started = only(protocol.StartActor, dispatcher.handle(one_node(4), 0.0))
    (decoder,) = (one.actor for one in started if one.stage == "decode")
    assert [one.actor for one in started if one.zero_cpu] == [decoder]
    lost = protocol.ActorLost(decoder, "node_died", "node")
    (again,) = only(protocol.StartActor, dispatcher.handle(lost, 1.0))
    assert (again.stage, again.zero_cpu) == ("decode", True)


def test_a_draining_node_gets_nothing_new_and_its_codes_are_written() -> None:
    bench = Bench(0, 1, 2, 3, exhausted=False)
    encoder = bench.actor("encode")
    bench.send(protocol.ActorPlaced(encoder, "node-a"))
    bench.done(bench.in_flight()[0])
    (encode,) = bench.in_flight("encode")
    assert encode.actor == encoder
    draining = one_node(8)._replace(draining=frozenset({"node-a"}))
    started = only(protocol.StartActor, bench.send(draining))
    assert [one.stage for one in started] == ["encode"]
    # Its codes would be lost with it, so they are written although the shard is not full.
    assert protocol.KillActor(encoder) in bench.done(encode)
    assert bench.in_flight()[-1].lease.stage == "write"
    bench.send(protocol.Planned(items(4, 5), exhausted=True))
    bench.bring_up()
    assert not any(one.actor == encoder for one in bench.in_flight())


def test_a_node_with_trouble_is_avoided_and_no_clip_is_blamed() -> None:
    bench = Bench(0, 1, 2)
    (decode,) = bench.in_flight()
    bench.send(protocol.ActorPlaced(decode.actor, "full-disk"))
    assert protocol.KillActor(decode.actor) in bench.fail(decode, "node", "no space left")
    (start,) = only(protocol.StartActor, bench.tick(5))
    assert start.avoid == ("full-disk",)
    bench.bring_up()
    (again,) = bench.in_flight()
    assert [item.row for item in again.lease.items] == [0, 1, 2]
    assert "clip_retried" not in dict(bench.notes)


def test_a_node_with_other_packages_is_not_used_for_its_stage_again() -> None:
    bench = Bench(0, 1, 2)
    (decode,) = bench.in_flight()
    bench.lose(decode.actor, with_node=True)
    for node, found in (("node-a", "av 17.0"), ("node-b", "no av")):
        bench.tick(1000)  # longer than a node with trouble is avoided
        decoder = bench.actor("decode")
        bench.send(protocol.ActorPlaced(decoder, node))
        commands = bench.send(protocol.ActorLost(decoder, "node_unfit", found))
        (note,) = (one for one in only(protocol.Note, commands) if one.event == "node_avoided")
        assert (node in note.message, found in note.message) == (True, True)
        bench.send(protocol.Capacity(nodes("node-a", "node-b", "node-c")))
    bench.lose(bench.actor("encode"), with_node=True)
    bench.tick(1000)
    started = {one.stage: one.avoid for one in only(protocol.StartActor, bench.log)}
    assert started["decode"] == ("node-a", "node-b")
    assert started["encode"] == ()
    bench.bring_up()
    (again,) = bench.in_flight()
    assert [item.row for item in again.lease.items] == [0, 1, 2]
    assert not only(protocol.Abort, bench.log)


def test_the_job_ends_if_no_node_has_its_packages() -> None:
    bench = Bench(0)
    bench.lose(bench.actor("decode"), with_node=True)
    bench.tick(100)
    decoder = bench.actor("decode")
    bench.send(protocol.ActorPlaced(decoder, "node-a"))
    bench.send(protocol.ActorLost(decoder, "node_unfit", "av 17.0 instead of 18.1"))
    bench.send(protocol.Capacity(nodes("node-a", "node-b")))
    assert not only(protocol.Abort, bench.log)
    (abort,) = only(protocol.Abort, bench.send(protocol.Capacity(nodes("node-a"))))
    assert (abort.kind, "node-a: av 17.0" in abort.message) == ("config", True)


@pytest.mark.parametrize("small_clips_fit", [False, True])
@pytest.mark.parametrize("names", [["node-a"], ["node-a", "node-b"], [None]])
def test_the_job_ends_within_minutes_if_all_nodes_have_trouble(
    names: list[str | None], small_clips_fit: bool
) -> None:
    bench, num_failed = Bench(*range(100)), 0
    while not only(protocol.Abort, bench.log):
        bench.tick(1)
        bench.bring_up()
        for flight in bench.in_flight("decode"):
            if small_clips_fit and 0 not in {item.row for item in flight.lease.items}:
                bench.done(flight)
                continue
            if node := names[num_failed % len(names)]:
                bench.send(protocol.ActorPlaced(flight.actor, node))
            bench.fail(flight, "node", "/mnt/videos on a: is gone")
            num_failed += 1
        if small_clips_fit:
            for flight in bench.in_flight("encode", "write"):
                bench.done(flight)
    (abort,) = only(protocol.Abort, bench.log)
    assert (abort.kind, "/mnt/videos on a: is gone" in abort.message) == ("runtime", True)
    assert MAX_TROUBLE_S <= bench.now < 600
    assert bench.notes.count(("lease_failed", True)) < 20, "a warning each time"


@pytest.mark.parametrize("stage", ["encode", "write"])
def test_inputs_that_do_not_come_are_looked_for_once_and_made_again(stage: Stage) -> None:
    bench = Bench(0, 1, limits=replace(LIMITS, runtime=RuntimeConfig()))
    bench.done(bench.in_flight()[0])
    if stage == "write":
        bench.done(bench.in_flight()[0])
    (stuck,) = bench.in_flight(stage)
    for _ in range(3):
        bench.tick(INPUTS_WITHIN_S)
    asked = only(protocol.FindInputs, bench.log)
    assert asked == ([protocol.FindInputs(stuck, None)] if stage == "encode" else [])
    sources = {one.attempt for one in only(protocol.Dispatch, bench.log)} - {stuck.attempt}
    commands = bench.fail(stuck, "node", "its inputs do not come", max(sources))
    assert protocol.KillActor(stuck.actor) in commands, "it waits for them"
    (again,) = bench.in_flight()
    assert (again.lease.stage, again.lease.items) == ("decode", stuck.lease.items)
    assert "node_avoided" not in dict(bench.notes), "another node made them"
    bench.tick(3)
    bench.bring_up()
    for _ in range(3):
        bench.done(bench.in_flight()[0])
    (commit,) = only(protocol.Commit, bench.log)
    assert (len(commit.receipts), commit.rejected) == (1, ())


def test_inputs_are_looked_for_even_if_the_deadline_ends_the_lease_at_the_same_moment() -> None:
    pool = PoolConfig(max_actors=1, lease_deadline_s=INPUTS_WITHIN_S)
    runtime = LIMITS.runtime.model_copy(update={"encode": pool})
    bench = Bench(0, limits=replace(LIMITS, runtime=runtime))
    bench.done(bench.in_flight()[0])
    (late,) = bench.in_flight("encode")
    commands = bench.tick(INPUTS_WITHIN_S + 1)
    assert protocol.KillActor(late.actor) in commands
    assert late not in bench.in_flight()
    assert commands[0] == protocol.FindInputs(late, None), "it holds what the lease needs"


def test_inputs_that_never_come_end_the_job() -> None:
    bench = Bench(0, limits=replace(LIMITS, runtime=RuntimeConfig()))
    while not only(protocol.Abort, bench.log):
        asked = {one.flight.attempt for one in only(protocol.FindInputs, bench.tick(1))}
        bench.bring_up()
        for flight in bench.in_flight():
            if flight.lease.stage == "decode":
                bench.done(flight)
            elif flight.attempt in asked:
                bench.fail(flight, "node", "its inputs do not come", 0)
    assert MAX_TROUBLE_S <= bench.now < 3 * MAX_TROUBLE_S
    assert not bench.account.rejected


@pytest.mark.parametrize("is_lease", [False, True])
def test_a_node_with_lasting_trouble_ends_no_job_that_others_do(is_lease: bool) -> None:
    runtime = LIMITS.runtime.model_copy(update={"decode": PoolConfig(max_actors=2)})
    bench = Bench(*range(1000), limits=replace(LIMITS, runtime=runtime))
    good, actors = bench.actor("decode"), bench.dispatcher.fleet.actors
    for _ in range(1000):
        bench.tick(2)
        for bad in [i for i, one in actors.items() if one.stage == "decode" and i != good]:
            bench.send(protocol.ActorPlaced(bad, "node-b"))
            if is_lease:
                bench.send(protocol.ActorUp(bad))
            else:
                bench.send(protocol.ActorLost(bad, "node_trouble", "is gone"))
        for flight in bench.in_flight():
            if flight.actor == good or flight.lease.stage != "decode":
                bench.done(flight)
            else:
                bench.fail(flight, "node", "is gone")
    assert not only(protocol.Abort, bench.log)


@pytest.mark.parametrize("minutes", [4, 6])
def test_a_mount_may_be_away_for_some_minutes(minutes: int) -> None:
    bench = Bench(*range(8))
    while bench.now < 60 * minutes:
        for flight in bench.in_flight("decode"):
            bench.fail(flight, "node", "is gone")
        bench.tick(1)
        bench.bring_up()
    while bench.now < 60 * minutes + 120:
        for flight in bench.in_flight():
            bench.done(flight)
        bench.tick(1)
        bench.bring_up()
    assert len(only(protocol.Abort, bench.log)) == (minutes == 6)
    assert len(only(protocol.Commit, bench.log)) == (minutes == 4)


def test_the_seconds_of_actors_are_counted_from_tick_to_tick() -> None:
    bench = Bench(0)
    bench.tick()
    bench.tick(2.0)
    bench.lose(bench.actor("write"), with_node=True)
    bench.tick(3.0)
    assert [bench.account.up_s[stage] for stage in STAGES] == [5.0, 5.0, 2.0]
    assert bench.account.paid_s == 5.0


def test_encoders_are_requested_first_so_that_no_decoder_takes_the_last_cpu_beside_a_gpu() -> None:
    limits = replace(LIMITS, runtime=RuntimeConfig(), on_gpu=True)
    commands = Dispatcher(limits, ref_of).handle(
        protocol.Capacity({name: protocol.Room(4, 1) for name in ("a", "b")}), 0.0
    )
    starts = [one.stage for one in commands if isinstance(one, protocol.StartActor)]
    assert starts == ["encode"] * 2 + ["decode"] * 6 + ["write"]
