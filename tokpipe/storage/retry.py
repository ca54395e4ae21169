"""The only retry layer between tokpipe and a store.

s3fs and botocore each retry by default, and their waits multiply: up to 416 s on an endpoint that
accepts connections but never answers. ``client.py`` turns both off, so one deadline holds.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

T = TypeVar("T")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0  # The upper bound doubles after each failure


class Moment(NamedTuple):
    """A time by two clocks: one may be set, and the other may not see that a machine was paused."""

    wall_s: float
    boot_s: float

    @classmethod
    def now(cls) -> "Moment":
        # Unlike CLOCK_MONOTONIC, it counts while a machine is suspended. macOS lacks it.
        clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
        return cls(time.time(), time.clock_gettime(clock))

    @property
    def age_s(self) -> float:
        """The seconds since then, by the clock that counted more."""
        now = Moment.now()
        return max(now.wall_s - self.wall_s, now.boot_s - self.boot_s)


class GaveUp(Exception):
    """The deadline passed. ``__cause__`` is the error of the last attempt."""


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with a total deadline. Pauses are drawn from 0 up, which spreads out a
    thousand actors that failed in one second."""

    deadline_s: float
    clock: Callable[[], float] = lambda: Moment.now().boot_s
    sleep: Callable[[float], None] = time.sleep
    draw: Callable[[], float] = random.random  # Returns a number from 0 to 1

    def run(
        self,
        attempt: Callable[[float], T],
        is_transient: Callable[[Exception], bool],
        wait_s: Callable[[Exception], float] = lambda _: 0.0,
    ) -> T:
        """Call ``attempt`` until it returns, raises a permanent error, or the deadline passes.
        ``wait_s`` returns how long the store asks to wait after an error. ``attempt`` takes its own
        time limit: at most half the deadline, so that one that hangs leaves time for a second."""
        started = self.clock()
        longest_pause_s = _FIRST_PAUSE_S
        num_attempts, last_error = 0, None
        while True:
            left_s = self.deadline_s - (self.clock() - started)
            if left_s <= 0:  # the process or its machine was frozen during the pause
                raise GaveUp(f"{num_attempts} attempts before it was frozen") from last_error
            num_attempts += 1
            try:
                return attempt(min(left_s, self.deadline_s / 2))
            except Exception as error:
                if not is_transient(error):
                    raise
                pause_s = wait_s(error) + self.draw() * longest_pause_s
                elapsed_s = self.clock() - started
                if elapsed_s + pause_s >= self.deadline_s:
                    raise GaveUp(f"{num_attempts} attempts in {elapsed_s:.1f} s") from error
                last_error = error
            self.sleep(pause_s)
            longest_pause_s = min(2 * longest_pause_s, _LONGEST_PAUSE_S)
