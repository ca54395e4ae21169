"""When shards are closed, and what is committed."""

from tests.runtime.bench import LIMITS, Bench, items, one_node, only, refs_of
from tests.runtime.simulated_world import receipt_of, ref_of
from tokpipe.runtime.dispatch import protocol
from tokpipe.runtime.dispatch.outbox import Outbox
from tokpipe.runtime.dispatch.queues import Queues
from tokpipe.runtime.dispatch.settlement import Settlement
from tokpipe.types import Rejected


def test_a_shard_is_closed_when_it_is_full_old_or_endangered() -> None:
    queues = Queues(LIMITS, out := Outbox())
    settlement = Settlement(LIMITS, queues, out)

    def add(attempt: int, num_codes: int) -> None:
        clip = protocol.Clip(items(attempt)[0], (protocol.Place(attempt, 0),))
        settlement.add_codes(clip, (4, 4), num_codes)
        settlement.close_due(all_of_them=False)

    add(1, 999)
    waiting = [len(queues.shards)]
    add(2, 1)
    waiting.append(len(queues.shards))
    assert waiting == [0, 1]
    add(3, 1)
    settlement.endanger(2)
    out.now = LIMITS.shard_max_age_s - 1
    settlement.close_due(all_of_them=False)
    assert len(queues.shards) == 1
    out.now = 0.0
    settlement.endanger(3)
    settlement.close_due(all_of_them=False)
    assert len(queues.shards) == 2
    add(4, 1)
    out.now = LIMITS.shard_max_age_s
    settlement.close_due(all_of_them=False)
    assert len(queues.shards) == 3
    assert not settlement.open_shards


def test_one_commit_at_a_time_counts_once_it_is_in_the_manifest() -> None:
    settlement = Settlement(LIMITS, Queues(LIMITS, out := Outbox()), out)
    receipt = receipt_of(tuple(map(ref_of, items(0, 1))))
    for encode_s in (2.0, 3.0):
        settlement.written(receipt, encode_s)
        settlement.commit_due(is_last=False)
    assert [one.account.useful_s for one in only(protocol.Commit, out.take())] == [2.0]
    assert out.account.clips == {}
    settlement.committed()
    assert out.account.clips == {"write": 2}
    settlement.commit_due(is_last=False)
    assert [one.account.useful_s for one in only(protocol.Commit, out.take())] == [3.0]


def test_a_single_rejection_is_committed_before_the_end() -> None:
    bench = Bench(0, exhausted=False)
    (first,) = bench.in_flight()
    bench.done(first, Rejected(refs_of(first)[0], "decode", "empty", ""))
    assert only(protocol.Commit, bench.tick(LIMITS.shard_max_age_s + 1))


def test_open_shards_are_written_when_any_node_starts_draining() -> None:
    bench = Bench(0, 1, exhausted=False)
    bench.done(bench.in_flight()[0])
    bench.done(bench.in_flight()[0], busy_s=3.0)
    assert not bench.in_flight("write")
    bench.send(one_node(8)._replace(draining=frozenset({"elsewhere"})))
    (write,) = bench.in_flight("write")
    assert sum(clip.encode_s for clip in write.lease.clips) == 3.0


def test_encoder_seconds_are_useful_once_committed_and_lost_if_codes_are() -> None:
    bench = Bench(0, 1)
    bench.done(bench.in_flight()[0])
    (encode,) = bench.in_flight()
    bench.done(encode, busy_s=6.0)
    bench.fail(bench.in_flight("write")[0], "inputs_lost", "gone", encode.attempt)
    assert (bench.account.useful_s, bench.account.lost_s) == (0.0, 6.0)
    bench.done(bench.in_flight()[0], busy_s=1.0)
    bench.done(bench.in_flight()[0], busy_s=5.0)
    bench.done(bench.in_flight()[0])
    (commit,) = only(protocol.Commit, bench.log)
    assert (commit.account.useful_s, commit.account.lost_s) == (5.0, 6.0)
