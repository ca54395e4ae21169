"""Thousands of lives of a job, none of which may lose or double a clip.

A failing seed is named by the test; ``Simulation(seed).run()`` plays it again. ``make chaos``
plays more of them.
"""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from tests.runtime.simulation import Simulation

NUM_SEEDS = int(os.environ.get("TOKPIPE_TEST_SEEDS", "4000"))
NUM_BATCHES = 40


def _play(seeds: range) -> Counter[str]:
    seen: Counter[str] = Counter()
    for seed in seeds:
        simulation = Simulation(seed)
        try:
            fates = simulation.run()
            assert_right(simulation, fates)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
        seen.update(simulation.seen)
    return seen


def assert_right(simulation: Simulation, fates: dict[tuple[int, int], str]) -> None:
    """Every clip has exactly one fate, and the one that it must have."""
    expected = simulation.world.expected()
    for row, total in simulation.world.segments.items():
        # Enough random losses in a row, each while alone, do reject an innocent clip. Before
        # anyone learnt that a row has segments, that is the row.
        if simulation.lost_alone[row, 0] >= 3 and fates.get((row, 0)) == "lost":
            for segment in range(1, total):
                if (row, segment) not in fates:
                    expected.pop((row, segment), None)
    assert fates.keys() == expected.keys(), f"{fates.keys() ^ expected.keys()}"
    for key, fate in fates.items():
        if fate != expected[key]:
            assert fate == "lost", f"{key}: {fate}, not {expected[key]}"
            assert simulation.lost_alone[key] >= 3, f"{key} was rejected without being to blame"


@pytest.mark.timeout(900)
def test_no_seed_loses_or_doubles_a_clip() -> None:
    step = NUM_SEEDS // NUM_BATCHES
    batches = [range(start, start + step) for start in range(0, NUM_SEEDS, step)]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        seen = sum(pool.map(_play, batches), Counter())
    # A simulation in which nothing ever goes wrong would pass as well: make sure that it did.
    for kind in (
        *("actor lost", "node lost", "zombie", "fault", "storage", "driver died", "stopped"),
        *("film", "state lost", "gave up", "node trouble", "drained"),
        *("driver froze", "fenced", "retried"),
    ):
        assert seen[kind] > 100, f"{kind}: only {seen[kind]}"
