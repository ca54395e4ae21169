"""The short form of the kill matrix (``python -m tests.chaos`` is the long one)."""

from collections.abc import Iterator

import pytest

from tests.chaos.faults import RATES_PER_MINUTE, WEIGHTS, Fault, Plan, draw_plan
from tests.chaos.lives import Result
from tests.chaos.matrix import check, right_codes, run_plan
from tests.chaos.world import World, built_world
from tests.end_to_end.jobs import Table

NUM_VIDEOS = 24

MANY_KILLS = Plan(
    seed=-2,
    rate_per_minute=16.0,
    faults=(
        Fault("lost_answers", 0.0, 8.0),
        Fault("kill_decode", 0.0, after="decode [1-9]"),
        Fault("kill_encode", 0.5, after="encode [1-9]"),
        Fault("store_503", 0.5, 3.0),
        Fault("kill_write", 0.5, after="write [1-9]"),
        Fault("kill_driver", 0.5),
        Fault("other_hardware", 0.5, 3.0, after="decode [1-9]"),
        Fault("store_stale", 0.0, 3.0),
        Fault("kill_child", 0.5),
    ),
)
TWO_AT_ONCE = Plan(-3, 1.0, (Fault("two_drivers", 0.2, 0.3),))


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with built_world(NUM_VIDEOS) as world:
        yield world


@pytest.fixture(scope="module")
def right(world: World) -> Table:
    return right_codes(world)


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.timeout(2400)
def test_kills_everywhere_lose_and_double_nothing(world: World, right: Table) -> None:
    result = run_plan(world, MANY_KILLS, right)
    assert result.is_good, result
    assert [kind for _, kind in result.struck] == [fault.kind for fault in MANY_KILLS.faults]
    assert {"lost_answers", "store_503"} <= world.weather.struck.keys()
    assert [life["code"] for life in result.lives] == [-9, 0]

    # The check finds what is planted.
    job, seen = world.folder / "jobs" / f"{result.name}.yaml", Result(MANY_KILLS)
    (first, (shape, data)), *others = right.items()
    check(seen, job, {**dict(others), first: (shape, data[::-1]), ("more", 0): (shape, data)})
    assert (seen.num_lost, seen.num_unequal, seen.is_good) == (1, 1, False)


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.timeout(2400)
def test_of_two_drivers_started_within_a_second_one_finishes_and_one_is_fenced(
    world: World, right: Table
) -> None:
    result = run_plan(world, TWO_AT_ONCE, right)
    assert result.is_good, result
    assert sorted(life["code"] for life in result.lives) == [0, 6]
    (loser,) = [life for life in result.lives if life["code"] == 6]
    assert "another driver" in loser["said"]


def test_a_seed_draws_the_same_plan_and_consecutive_seeds_cover_every_kind() -> None:
    assert draw_plan(7) == draw_plan(7) != draw_plan(8)
    plans = [draw_plan(seed) for seed in range(3 * len(WEIGHTS))]
    assert {fault.kind for plan in plans for fault in plan.faults} == WEIGHTS.keys()
    assert {plan.rate_per_minute for plan in plans} == set(RATES_PER_MINUTE)
