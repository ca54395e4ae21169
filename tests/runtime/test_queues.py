"""What waits for actors, and in which order it goes out."""

from dataclasses import replace

from tests.runtime.bench import LIMITS, Bench, items, one_node, only
from tests.runtime.simulated_world import ref_of
from tokpipe.runtime.dispatch import Dispatcher
from tokpipe.runtime.dispatch.dispatcher import SHARDS_AHEAD
from tokpipe.runtime.dispatch.fleet import SLOTS
from tokpipe.runtime.dispatch.outbox import Outbox
from tokpipe.runtime.dispatch.protocol import Clip, DecodedInfo, FetchPlan, Lease, Planned
from tokpipe.runtime.dispatch.queues import Queues
from tokpipe.types import WorkItem


def test_leases_that_are_put_back_go_out_first() -> None:
    queues = Queues(LIMITS, Outbox())
    queues.planned(Planned(items(0, 1, 2, 3), exhausted=True))
    first = queues.next_decode(2)
    assert first is not None
    queues.put_back(first)
    assert queues.next_decode(3) == Lease("decode", tuple(map(Clip, items(0, 1, 2))))
    assert not queues.nothing_before_write
    assert queues.next_decode(3) == Lease("decode", tuple(map(Clip, items(3))))
    assert queues.next_decode(3) is None
    assert queues.nothing_before_write


def test_retries_go_out_when_they_are_due_earliest_first() -> None:
    queues = Queues(LIMITS, out := Outbox())
    leases = [Lease("decode", (), stream=row) for row in range(3)]
    for pause_s, lease in zip((9.0, 3.0, 5.0), leases, strict=True):
        queues.add_retry(pause_s, lease)
    out.now = 5.0
    assert list(queues.due_retries()) == [leases[1], leases[2]]
    queues.forget(stream_id=0)
    out.now = 100.0
    assert not list(queues.due_retries())


def test_segments_of_a_cut_source_become_work_once() -> None:
    bench = Bench(3)
    (first,) = bench.in_flight()
    ref = ref_of(replace(first.lease.items[0], num_segments=6))
    bench.done(first, DecodedInfo(ref, 5))
    leased = [item.segment for one in bench.in_flight("decode") for item in one.lease.items]
    assert leased == [1, 2, 3, 4, 5]
    assert bench.account.num_extra_clips == 5


def test_the_plan_is_fetched_a_little_at_a_time() -> None:
    (fetch,) = only(FetchPlan, Dispatcher(LIMITS, ref_of).handle(one_node(1000), 0.0))
    assert fetch.num_items <= 100


def test_encoders_wait_for_a_slow_store() -> None:
    bench = Bench(*range(400), exhausted=False, limits=replace(LIMITS, shard_bytes=1))
    while waiting := bench.in_flight("decode", "encode"):
        bench.done(waiting[0])
    assert len(bench.dispatcher.queues.shards) <= SHARDS_AHEAD + 1 + SLOTS["encode"]
    for _ in range(4):
        bench.done(bench.in_flight("write")[-1])
    assert bench.in_flight("encode")


def spans(uri: str, *rows: int) -> tuple[WorkItem, ...]:
    return tuple(replace(item, source_uri=uri) for item in items(*rows))


def leased(lease: Lease | None) -> list[tuple[int, int]]:
    return [] if lease is None else [(item.row, item.segment) for item in lease.items]


def test_a_decoder_stays_with_the_source_that_it_has() -> None:
    queues = Queues(LIMITS, Outbox())
    queues.planned(
        Planned(spans("a", 0, 1, 2, 3) + spans("b", 4, 5, 6) + spans("c", 7), exhausted=True)
    )
    assert leased(queues.next_decode(2)) == [(0, 0), (1, 0)]
    assert leased(queues.next_decode(2)) == [(4, 0), (5, 0)], "a is another decoder's"
    assert leased(queues.next_decode(2, "b")) == [(6, 0), (7, 0)]
    assert leased(queues.next_decode(1, "a")) == [(2, 0)]
    assert leased(queues.next_decode(2, "c")) == [(3, 0)], "there is nothing else"
    assert queues.nothing_before_write


def test_a_long_source_is_shared_if_there_is_nothing_else() -> None:
    queues = Queues(LIMITS, Outbox())
    (row,) = items(0)
    queues.planned(Planned((row, *spans("b", 1)), exhausted=True))
    assert leased(queues.next_decode(1)) == [(0, 0)]
    queues.add_segments(replace(row, num_segments=6), 6)
    assert leased(queues.next_decode(2, row.source_uri)) == [(0, 1), (0, 2)]
    assert leased(queues.next_decode(1, "c")) == [(1, 0)]
    assert leased(queues.next_decode(1, "b")) == [(0, 3)]
    assert leased(queues.next_decode(9, row.source_uri)) == [(0, 4), (0, 5)]
    assert queues.nothing_before_write


def test_the_plan_is_asked_for_by_rows_not_by_segments() -> None:
    queues = Queues(LIMITS, out := Outbox())
    queues.planned(Planned(items(0), exhausted=False))
    (row,) = queues.next_decode(1).items  # type: ignore[union-attr]
    queues.add_segments(replace(row, num_segments=1000), 1000)
    queues.ask_for_plan(2)
    assert only(FetchPlan, out.take())
