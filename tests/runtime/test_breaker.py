"""Jobs that stop before their rejections waste everything, and jobs that must not stop."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from tests.runtime.bench import LIMITS, Bench, answer_for, one_node, only, refs_of
from tests.runtime.simulated_world import item_of, receipt_of, ref_of
from tokpipe.config.job import PoolConfig, RuntimeConfig
from tokpipe.runtime.dispatch import Dispatcher, protocol
from tokpipe.runtime.dispatch.settlement import MAX_ALARM, MIN_ALARM
from tokpipe.types import Rejected

POOLS = RuntimeConfig(decode=PoolConfig(max_actors=6), encode=PoolConfig(max_actors=2))
IN_FLIGHT = 100
"""More clips than decoders hold at a time."""
IsBad = Callable[[int, int], bool]
"""Whether a row is rejected, if so many clips were sent to decoders before it."""


@dataclass
class Played:
    """How a job of whole videos ended."""

    finish: protocol.Finish | None = None
    codes: set[int] = field(default_factory=set)
    rejected: list[Rejected] = field(default_factory=list)
    """Those that were committed."""
    num_rejected: int = 0


def play(num_rows: int, is_bad: IsBad, most: float, *, seed: int = 0, before: int = 0) -> Played:
    """Play a job on six decoders whose answers come in any order.

    ``before``: clips that an earlier run tokenized.
    """
    rng, played, num_sent = random.Random(seed), Played(), 0
    limits = replace(LIMITS, runtime=POOLS, clips_per_lease=8, max_rejected_fraction=most)
    limits = replace(limits, num_clips=num_rows + before, num_unopened=num_rows)
    dispatcher = Dispatcher(limits, ref_of)
    items = tuple(map(item_of, range(num_rows)))
    events: list[protocol.Event] = [protocol.Planned(items, True), one_node(64)]
    now = 0.0
    while played.finish is None:
        event = events.pop(rng.randrange(len(events))) if events else protocol.Tick()
        now += 0.01 if events else 1.0
        for command in dispatcher.handle(event, now):
            match command:
                case protocol.StartActor(actor):
                    events.append(protocol.ActorUp(actor))
                case protocol.Dispatch(attempt, _, protocol.Lease("decode") as lease):
                    answer: list[protocol.Info] = []
                    for item in lease.items:
                        ref = ref_of(item)
                        good = protocol.DecodedInfo(ref, 5)
                        bad = Rejected(ref, "decode", "missing", "is not there")
                        answer.append(bad if is_bad(item.row, num_sent) else good)
                        num_sent += 1
                    events.append(protocol.LeaseDone(attempt, tuple(answer)))
                case protocol.Dispatch(attempt, _, lease):
                    refs = tuple(map(ref_of, lease.items))
                    is_write = lease.stage == "write"
                    done = receipt_of(refs) if is_write else tuple(map(answer_for(command), refs))
                    events.append(protocol.LeaseDone(attempt, done))
                case protocol.Commit(receipts, rejected):
                    played.codes |= {ref.row for one in receipts for ref in one.clips}
                    played.rejected += rejected
                    events.append(protocol.Committed())
                case protocol.Finish():
                    played.finish = command
    played.num_rejected = sum(dispatcher.out.account.rejected_at.values())
    return played


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("num_rows", "vanishes_at", "most", "bound"),
    [
        (24, 0, 0.05, 24),
        (24, 10, 0.05, 14),
        (5_000, 0, 0.05, 250),  # a wrong table
        (5_000, 3_000, 0.05, 250),
        (5_000, 2_000, 0.6, MAX_ALARM),
        (15_000, 100, 0.05, MAX_ALARM),
        (5_000, 1_000, 0.001, MIN_ALARM),
    ],
)
def test_a_source_that_vanishes_costs_no_clip(
    num_rows: int, vanishes_at: int, most: float, bound: int, seed: int
) -> None:
    played = play(num_rows, lambda row, sent: sent >= vanishes_at, most, seed=seed)
    assert played.finish is not None
    assert played.finish.outcome == "stopped"
    assert not played.rejected, "its clips were blamed"
    assert len(played.codes) > vanishes_at - IN_FLIGHT, "what was encoded before is not committed"
    assert played.num_rejected <= bound + IN_FLIGHT
    first, *samples = played.finish.why.splitlines()
    assert "clips rejected (missing " in first
    assert samples[0].endswith(": missing: is not there")
    assert "the same command tries them again" in samples[3]
    assert "A corrected table needs a new output.uri" in samples[3]
    assert "max_rejected_fraction; 1.0 allows any number" in samples[4]


@pytest.mark.parametrize("every", [7, 100])
def test_a_success_now_and_then_does_not_hide_it(every: int) -> None:
    played = play(15_000, lambda row, sent: sent > 500 and row % every > 0, 0.05)
    assert played.finish is not None
    assert played.finish.outcome == "stopped"
    assert not played.rejected
    assert played.num_rejected < 2 * MAX_ALARM + IN_FLIGHT


def clumped(num_rows: int, share: float, size: int, seed: int) -> set[int]:
    """Rows in clumps of about ``size`` that are a ``share`` of all."""
    rng, rows = random.Random(seed), set[int]()
    while (left := int(share * num_rows) - len(rows)) > 0:
        start = rng.randrange(num_rows)
        rows |= set(range(start, min(num_rows, start + min(left, rng.randint(1, 2 * size)))))
    return rows


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("num_rows", "share", "most", "size"),
    [
        (24, 0.04, 0.05, 1), (300, 0.03, 0.05, 9), (5_000, 0.03, 0.05, 1), (5_000, 0.03, 0.05, 20),
        (5_000, 0.03, 0.05, 150), (10_000, 0.03, 0.05, 200), (1_000, 0.49, 0.5, 15),
        (1_000, 0.9, 0.95, 1), (400, 0.0, 0.0, 1), (200, 1.0, 1.0, 200), (2_000, 0.5, 1.0, 700),
    ],
)  # fmt: skip
def test_a_job_within_its_limit_is_never_stopped(
    num_rows: int, share: float, most: float, size: int, seed: int
) -> None:
    bad = clumped(num_rows, share, size, seed)
    played = play(num_rows, lambda row, _: row in bad, most, seed=seed)
    assert played.finish == protocol.Finish("done")
    assert {one.ref.row for one in played.rejected} == bad
    assert played.codes == set(range(num_rows)) - bad


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("before", [0, 5_000])
def test_a_limit_that_is_out_of_reach_stops_the_job_and_keeps_what_it_did(
    before: int, seed: int
) -> None:
    rng = random.Random(seed)
    bad = {row for row in range(5_000) if rng.random() < 0.3}
    played = play(5_000, lambda row, _: row in bad, 0.05, seed=seed, before=before)
    assert played.finish is not None
    allowed = 0.05 * (5_000 + before)
    assert allowed < played.num_rejected < allowed + IN_FLIGHT
    assert len(played.codes) > 2 * allowed
    assert len(played.rejected) > allowed - IN_FLIGHT
    assert "more than max_rejected_fraction=5.0% allows" in played.finish.why
    assert "--retry-rejected --reason missing" in played.finish.why


def test_long_videos_that_come_later_may_still_save_a_job() -> None:
    """The first rows are missing, but the others may have a thousand clips each."""
    limits = replace(LIMITS, max_rejected_fraction=0.05, num_clips=9, num_unopened=9)
    bench = Bench(*range(9), limits=limits)
    for _ in range(4):
        (decode,) = bench.in_flight()[:1]
        bench.done(decode, *(Rejected(ref, "decode", "missing", "") for ref in refs_of(decode)))
        if len(bench.in_flight()[0].lease.items) == 1:
            break
    assert bench.account.rejected_at == {"decode": 8}
    ref = replace(refs_of(bench.in_flight()[0])[0], num_segments=1_000)
    bench.done(bench.in_flight()[0], protocol.DecodedInfo(ref, 5))
    while flights := bench.in_flight():
        bench.done(flights[-1])
        if only(protocol.Commit, bench.log[-9:]):
            bench.send(protocol.Committed())
    assert bench.log[-1] == protocol.Finish("done")
