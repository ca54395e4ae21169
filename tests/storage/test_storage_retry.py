"""The retry layer, with a simulated clock."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokpipe.storage.retry import GaveUp, RetryPolicy


@dataclass
class Clock:
    now_s: float = 100.0
    pauses: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now_s += seconds

    def retry(self, deadline_s: float, draw: Callable[[], float] = lambda: 1.0) -> RetryPolicy:
        return RetryPolicy(deadline_s, clock=lambda: self.now_s, sleep=self.sleep, draw=draw)


shares = st.lists(st.floats(0, 1), min_size=1)


class Transient(Exception):
    pass


def fail(_: float) -> None:
    raise Transient


def test_pauses_double_and_giving_up_reports_the_attempts_and_the_last_error() -> None:
    clock = Clock()
    with pytest.raises(GaveUp, match=r"11 attempts in 52\.6 s") as caught:
        clock.retry(60).run(fail, lambda _: True)
    assert clock.pauses == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 10.0, 10.0])
    assert isinstance(caught.value.__cause__, Transient)


def test_permanent_errors_are_raised_at_once() -> None:
    clock = Clock()
    with pytest.raises(Transient):
        clock.retry(60).run(fail, lambda _: False)
    assert clock.pauses == []


def test_a_pause_is_at_least_as_long_as_the_store_asks() -> None:
    clock, asked = Clock(), iter([5.0, 0.0, 30.0, 3600.0])
    with pytest.raises(GaveUp, match=r"4 attempts"):
        clock.retry(600).run(fail, lambda _: True, lambda _: next(asked))
    assert clock.pauses == pytest.approx([5.2, 0.4, 30.8])


def test_a_process_that_was_frozen_in_a_pause_makes_no_late_attempt() -> None:
    clock, attempts = Clock(), list[float]()

    def attempt(timeout_s: float) -> None:
        attempts.append(timeout_s)
        raise Transient

    frozen = replace(clock.retry(60), sleep=lambda _: clock.sleep(7200.0))
    with pytest.raises(GaveUp, match="1 attempts") as caught:
        frozen.run(attempt, lambda _: True)
    assert attempts == [30.0], "an exclusive create after two hours may list removed shards"
    assert isinstance(caught.value.__cause__, Transient)


@given(st.floats(0.1, 1000), shares, shares)
def test_no_attempt_outlasts_the_deadline(
    deadline_s: float, draws: list[float], costs: list[float]
) -> None:
    clock = Clock()
    started = clock.now_s
    num = 0

    def attempt(timeout_s: float) -> None:
        nonlocal num
        assert clock.now_s + timeout_s <= started + deadline_s + 1e-6
        assert timeout_s <= deadline_s / 2
        # Each takes part of its time, and at least a thousandth of the deadline.
        clock.now_s += max(0.001 * deadline_s, costs[num % len(costs)] * timeout_s)
        num += 1
        raise Transient

    with pytest.raises(GaveUp):
        clock.retry(deadline_s, lambda: draws[num % len(draws)]).run(attempt, lambda _: True)
    assert clock.now_s - started <= deadline_s * 1.002
