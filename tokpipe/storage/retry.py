"""The one retry layer between tokpipe and a store.

s3fs and botocore each retry by themselves, and their defaults multiply: 416 s of waiting on an
endpoint that accepts connections and never answers. Both are switched off (``client.py``), so
that a request ends, well or badly, within one deadline.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


class GaveUp(Exception):
    """The deadline passed; ``__cause__`` is what the last attempt ended with."""

    def __init__(self, num_attempts: int, elapsed_s: float) -> None:
        super().__init__(f"{num_attempts} attempts in {elapsed_s:.1f} s")
        self.num_attempts = num_attempts
        self.elapsed_s = elapsed_s


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with full jitter under a total deadline.

    Full jitter (a pause drawn from the whole range, 0 included) spreads a thousand actors that
    were refused in the same second. Source: AWS Architecture Blog, "Exponential Backoff And
    Jitter" (2015).
    """

    deadline_s: float
    first_pause_s: float = 0.2
    """Upper bound of the first pause; it doubles after each failure."""
    longest_pause_s: float = 10.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    draw: Callable[[], float] = random.random
    """A number from 0 to 1."""

    def run(self, attempt: Callable[[float], T], is_transient: Callable[[Exception], bool]) -> T:
        """Call ``attempt`` until it returns, fails for good, or the deadline passes.

        ``attempt`` is given the seconds that it may take. One attempt gets at most half the
        deadline, or a request that hangs would leave no time for a second one.

        Raises:
            GaveUp: from the last error, when no time is left for another attempt.
            Exception: whatever ``attempt`` raised that is not transient.
        """
        started = self.clock()
        longest_pause_s = self.first_pause_s
        num_attempts = 0
        while True:
            left_s = self.deadline_s - (self.clock() - started)
            num_attempts += 1
            try:
                return attempt(min(left_s, self.deadline_s / 2))
            except Exception as error:
                if not is_transient(error):
                    raise
                pause_s = self.draw() * longest_pause_s
                elapsed_s = self.clock() - started
                if elapsed_s + pause_s >= self.deadline_s:
                    raise GaveUp(num_attempts, elapsed_s) from error
            self.sleep(pause_s)
            longest_pause_s = min(2 * longest_pause_s, self.longest_pause_s)
