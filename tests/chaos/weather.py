"""Bad weather between a job and its store: faults of the proxy that last for some seconds."""

import random
import time
from dataclasses import dataclass

from tests.storage.fault_proxy import Fault, Refusal, Request, Slow

Spoiling = Fault | Refusal | Slow


@dataclass(frozen=True)
class _Kind:
    fault: Spoiling
    share: float
    """Of the requests that it may strike."""
    methods: tuple[str, ...] = ("GET", "HEAD", "PUT", "POST", "DELETE")


KINDS = {
    "lost_answers": _Kind(Fault.LOSE_ANSWER, 0.4, ("PUT", "POST")),
    "store_503": _Kind(Refusal(503, "SlowDown"), 0.9),
    "store_500": _Kind(Refusal(500, "InternalError"), 0.9),
    "store_slow": _Kind(Slow(1.5), 0.7),
    "store_reset": _Kind(Fault.RESET, 0.7),
    "store_truncated": _Kind(Fault.CUT_ANSWER, 0.5, ("GET",)),
    "store_silent": _Kind(Fault.HANG, 0.5),
    "store_empty": _Kind(Fault.EMPTY, 0.5, ("GET",)),
    "store_stale": _Kind(Fault.STALE, 0.5, ("GET", "HEAD")),
}
EXPIRED = (Refusal(400, "ExpiredToken"), Refusal(403, "ExpiredToken"))
"""The status of AWS and that of others; an answer to HEAD has nothing else."""


class Weather:
    """Decides for a ``FaultProxy`` which requests it spoils."""

    def __init__(self) -> None:
        self._until_s: dict[str, float] = {}
        self._fresh: set[str] = set()
        self._rng = random.Random(0)
        self.expired: dict[str, Spoiling] = {}
        """Access keys that are not accepted any more, and how that is said."""
        self.struck: dict[str, int] = {}
        """Requests spoiled, by kind."""

    def blow(self, kind: str, seconds: float) -> None:
        """Spoil requests for some seconds, and on until one has been spoiled."""
        self._until_s[kind] = time.monotonic() + seconds
        self._fresh.add(kind)

    def calm(self) -> None:
        self._until_s = {}
        self.expired = {}

    def decide(self, request: Request) -> Spoiling | None:
        if spoiling := self.expired.get(request.access_key):
            return spoiling
        now = time.monotonic()
        for name, until_s in list(self._until_s.items()):
            kind = KINDS[name]
            is_on = now < until_s or name in self._fresh
            if is_on and request.method in kind.methods and self._rng.random() < kind.share:
                self._fresh.discard(name)
                self.struck[name] = self.struck.get(name, 0) + 1
                return kind.fault
        return None
