"""Jobs that stop before their rejections waste everything, and jobs that must not."""

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import pytest

from tests.runtime.bench import LIMITS, Bench, answer_for, only, refs_of
from tokpipe.config.job import PoolConfig, RuntimeConfig
from tokpipe.runtime.dispatch import protocol
from tokpipe.runtime.dispatch.breaker import MAX_ALARM, MIN_ALARM
from tokpipe.types import Rejected

POOLS = RuntimeConfig(
    decode=PoolConfig(max_actors=6),
    encode=PoolConfig(max_actors=2),
    write=PoolConfig(cpus=0, max_actors=1),
)


class Job:
    """A job of whole videos on six decoders, of which some rows are rejected."""

    def __init__(
        self, num_rows: int, is_bad: Callable[[int, int], bool], most: float, seed: int = 0
    ) -> None:
        limits = replace(
            LIMITS,
            runtime=POOLS,
            max_rejected_fraction=most,
            num_clips=num_rows,
            num_unopened=num_rows,
        )
        rng, bench = random.Random(seed), Bench(*range(num_rows), limits=limits)
        bench.send(protocol.Capacity(64, 0))
        bench.bring_up()
        self.tried: set[int] = set()
        self.committed: list[int] = []
        self.rejected: list[int] = []
        done = 0
        while not only(protocol.Finish, bench.log):
            for commit in only(protocol.Commit, bench.log):
                self.rejected += [one.ref.row for one in commit.rejected]
                self.committed += [ref.row for one in commit.receipts for ref in one.clips]
                bench.log.clear()
                bench.send(protocol.Committed())
            if not (flights := bench.in_flight()):
                bench.tick(1)
                continue
            one, bad = rng.choice(flights), self.bad
            ...
        (self.finish,) = only(protocol.Finish, bench.log)
