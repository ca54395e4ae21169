"""How long a shard may wait to be listed, against the age at which ``tokpipe clean`` removes it.

A shard is put before its lease ends. It may wait for one commit, and is listed by the next. A
driver that was frozen, or whose clock jumped, may be later. It lists none of them then.
"""

import time
from typing import NamedTuple

LISTED_WITHIN_S = 3600.0  # After the lease of a shard began. ``clean`` keeps everything younger


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
