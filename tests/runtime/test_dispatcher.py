"""What the dispatcher reports: notes, and the account of the run."""

from dataclasses import replace

from tests.runtime.bench import Bench, one_node, only, refs_of
from tokpipe.runtime.dispatch import protocol
from tokpipe.types import Failed


def test_events_are_noted() -> None:
    bench = Bench(0)
    assert bench.notes == [("pools_resized", False), *3 * [("actor_up", False)]]
    (decode,) = bench.in_flight()
    bench.log.clear()
    bench.fail(decode, "fault", "it raised")
    assert bench.notes == [("lease_failed", True), ("clip_retried", False)]
    failed, retried = only(protocol.Note, bench.log)
    assert failed.fields == {
        "stage": "decode",
        "actor": decode.actor,
        "kind": "fault",
        "reason": "it raised",
        "num_clips": 1,
    }
    assert retried.fields["clip_id"] == refs_of(decode)[0].clip_id
    assert (retried.fields["reason"], retried.fields["attempts"]) == ("fault", 1)

    bench.bring_up()
    bench.log.clear()
    bench.send(protocol.ActorPlaced(bench.actor("encode"), "node-a"))
    bench.lose(bench.actor("encode"), with_node=True)
    assert bench.notes[0] == ("actor_lost", True)
    assert bench.account.lost_actors == {"encode": 1}
    bench.log.clear()
    bench.send(one_node(8)._replace(draining=frozenset({"node-b"})))
    bench.send(one_node(8)._replace(draining=frozenset({"node-b"})))
    bench.send(one_node(2))  # changes no pool, since each may have one actor
    bench.send(protocol.StopRequested(1.0))
    assert bench.notes == [("nodes_draining", True), ("stop_requested", False)]


def test_seconds_are_counted_by_activity() -> None:
    bench = Bench(0)
    bench.now += 5
    bench.done(bench.in_flight()[0], busy_s=4.0, download_s=1.0)
    bench.now += 3
    bench.done(bench.in_flight()[0], busy_s=2.0)
    spent = bench.account.spent_s
    assert (spent["download"], spent["decode"]) == (1.0, 3.0)
    assert (spent["transfer"], spent["encode"]) == (1.0, 2.0)


def test_rows_are_opened_once() -> None:
    bench = Bench(0, 1, 2)
    (decode,) = bench.in_flight()
    cut, gone, whole = refs_of(decode)
    infos = (
        protocol.DecodedInfo(replace(cut, num_segments=4), 5),
        Failed(gone, "unreachable", "no answer"),
    )
    bench.done(decode, *infos, protocol.DecodedInfo(whole, 5))
    assert (bench.account.num_opened, bench.account.num_extra_clips) == (2, 3)
    assert bench.notes.count(("clip_retried", False)) == 1


def test_later_clips_of_a_source_are_made_from_the_version_that_was_read_first() -> None:
    bench = Bench(0)
    (decode,) = bench.in_flight()
    (ref,) = refs_of(decode)
    bench.done(decode, protocol.DecodedInfo(replace(ref, num_segments=3), 5, version=7))
    while decodes := bench.in_flight("decode"):
        assert {item.version for one in decodes for item in one.lease.items} == {7}
        bench.done(decodes[0])
    assert bench.account.clips["decode"] == 3
