"""Who is at fault: a clip only if it was alone, and never for a store or a node."""

from dataclasses import replace

from tests.runtime.bench import LIMITS, Bench, one_node, only, refs_of
from tokpipe.config.job import PoolConfig
from tokpipe.runtime.dispatch.blame import MAX_FAULTS, RETRY_PAUSE_S
from tokpipe.runtime.dispatch.protocol import Abort, Commit, DecodedInfo, Dispatch
from tokpipe.types import Failed


def test_the_clips_of_a_lost_lease_run_one_by_one() -> None:
    bench = Bench(0, 1, 2)
    (first,) = bench.in_flight()
    bench.lose(first.actor)
    bench.bring_up()
    sizes = []
    while decodes := bench.in_flight("decode"):
        sizes += [len(decodes[0].lease.items)]
        bench.done(decodes[0])
    assert sizes == [1, 1, 1]


def test_suspects_do_not_wait_for_the_end_of_the_job() -> None:
    pools = LIMITS.runtime.model_copy(update={"decode": PoolConfig(max_actors=2)})
    bench = Bench(*range(100), limits=replace(LIMITS, runtime=pools))
    first = bench.in_flight()[0]
    bench.lose(first.actor)
    bench.send(one_node(2))  # no replacement, so the busy decoder must do it
    bench.play(24)
    rows = {item.row for one in only(Dispatch, bench.log)[2:] for item in one.lease.items}
    assert {item.row for item in first.lease.items} <= rows
    assert 99 not in rows, "everything is done, so nothing could be overtaken"


def test_a_lost_node_blames_no_clip() -> None:
    bench = Bench(0, 1, 2)
    (first,) = bench.in_flight()
    bench.lose(first.actor, with_node=True)
    bench.bring_up()
    (again,) = bench.in_flight()
    assert again.lease.items == first.lease.items


def test_a_clip_that_takes_down_three_workers_alone_is_rejected() -> None:
    bench = Bench(7)
    for _ in range(3):
        bench.lose(bench.in_flight()[-1].actor)
        bench.bring_up()
    (commit,) = only(Commit, bench.log)
    (rejected,) = commit.rejected
    assert (rejected.ref.row, rejected.reason, rejected.attempts) == (7, "worker_lost", 3)


def test_a_failing_store_rejects_no_clip_and_ends_the_job() -> None:
    bench = Bench(0)
    for _ in range(3):
        commands = bench.fail(bench.in_flight()[-1], "storage", "503")
    assert commands[-1] == Abort("storage", "503")
    assert not only(Commit, bench.log)


def test_faults_in_a_row_end_the_job_and_reject_no_clip() -> None:
    bench = Bench(*range(100))
    for _ in range(MAX_FAULTS):
        bench.fail(bench.in_flight()[-1], "fault", "no disk")
        bench.bring_up()
    assert isinstance(bench.log[-1], Abort)
    assert not only(Commit, bench.log)


def test_a_clip_that_a_stage_gave_up_is_tried_again_after_a_pause() -> None:
    bench = Bench(0, 1)
    (decode,) = bench.in_flight()
    good, bad = refs_of(decode)
    failed = Failed(bad, "unreachable", "no route", "ClientError")
    bench.done(decode, DecodedInfo(good, 5), failed)
    for pause_s in (RETRY_PAUSE_S, 4 * RETRY_PAUSE_S):
        bench.tick(pause_s - 0.1)
        assert not bench.in_flight("decode")
        bench.tick(0.2)
        (again,) = bench.in_flight("decode")
        assert refs_of(again) == [bad]
        bench.done(again, failed)
    bench.tick(LIMITS.shard_max_age_s)
    (commit,) = only(Commit, bench.log)
    (rejected,) = commit.rejected
    assert (rejected.reason, rejected.error, rejected.attempts) == ("unreachable", "ClientError", 3)


def test_the_job_ends_if_a_stage_gives_up_every_clip() -> None:
    bench = Bench(*range(200))
    for _ in range(MAX_FAULTS):
        one = bench.in_flight()[0]
        bench.done(one, *(Failed(ref, "unreachable", "network is down") for ref in refs_of(one)))
    (abort,) = only(Abort, bench.log)
    assert f"{MAX_FAULTS} leases in a row failed" in abort.message
    assert "network is down" in abort.message
