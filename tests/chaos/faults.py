"""Which faults strike a run, and when: all drawn from the run's seed."""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

WEIGHTS: dict[str, float] = {
    "kill_decode": 4,
    "kill_encode": 4,
    "kill_write": 4,
    "kill_child": 4,
    "lost_answers": 4,
    "store_503": 2,
    "store_500": 2,
    "store_slow": 2,
    "store_reset": 2,
    "store_truncated": 2,
    "disk_full": 2,
    "remove_node": 2,
    "kill_driver": 2,
    "stop_driver": 1,
    "freeze_driver": 1,
    "two_drivers": 1,
    "new_head": 0.5,
    "freeze_node": 0,
    "store_silent": 1,
    "store_empty": 2,
    "store_stale": 2,
    "credentials_expire": 1,
    "clock_jump": 1,
    "kill_raylet": 2,
    "kill_gcs": 0.5,
    "shm_full": 1,
    "spill_full": 0.5,
    "other_hardware": 1,
    "other_container": 2,
    "tmp_cleaner": 2,
    "mount_gone": 2,
    "stop_group": 0.5,
    "job_stop": 1,
    "manifest_lost": 1,
}
"""How often a kind is drawn. Faults that end a driver cost time and are drawn less often; a frozen
node costs two minutes, and is only the first fault of its own seeds."""

LASTS_S: dict[str, tuple[float, float]] = {
    "lost_answers": (3, 8),
    "store_503": (2, 6),
    "store_500": (2, 6),
    "store_slow": (3, 8),
    "store_reset": (2, 6),
    "store_truncated": (2, 6),
    "disk_full": (3, 8),
    "remove_node": (2, 8),
    "freeze_driver": (8, 25),
    "two_drivers": (0, 1),
    "freeze_node": (110, 125),
    "store_silent": (3, 8),
    "store_empty": (2, 6),
    "store_stale": (3, 8),
    "credentials_expire": (2, 8),
    "clock_jump": (4, 15),
    "kill_raylet": (2, 8),
    "kill_gcs": (2, 70),
    "shm_full": (3, 8),
    "spill_full": (5, 12),
    "tmp_cleaner": (3, 8),
    "mount_gone": (3, 10),
}
"""Seconds that a fault of a kind lasts, from and to; other kinds are over at once. A removed node
comes back after them, and the second of two drivers starts after them."""

RATES_PER_MINUTE = (0.0, 4.0, 10.0, 20.0)
RATE_WEIGHTS = (1, 1, 5, 8)
MAX_FAULTS = 14
"""Of one run, so that it ends."""


@dataclass(frozen=True)
class Fault:
    """One fault of a run."""

    kind: str
    wait_s: float
    """At least so long after the fault before it, or after the start of the run."""
    lasts_s: float = 0.0
    pick: float = 0.0
    """From 0 to 1: which of several targets."""
    after: str = ""
    """A pattern that the newest driver must have printed first."""


@dataclass(frozen=True)
class Plan:
    """All faults of one run."""

    seed: int
    rate_per_minute: float
    faults: tuple[Fault, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def draw_plan(seed: int, kinds: Sequence[str] = tuple(WEIGHTS)) -> Plan:
    """Draw a plan: the same for the same seed and kinds.

    One of the first four faults goes round through all ``kinds``, so that consecutive seeds
    cover each of them.
    """
    rng = random.Random(seed)
    (rate,) = rng.choices(RATES_PER_MINUTE, RATE_WEIGHTS)
    if not rate:
        return Plan(seed, rate, ())
    drawn = rng.choices(kinds, [WEIGHTS[kind] or 1e-9 for kind in kinds], k=MAX_FAULTS - 1)
    drawn.insert(rng.randrange(4), kinds[seed % len(kinds)])
    wait_s, faults = rng.uniform(0, 15), []
    for kind in drawn:
        lasts_s = rng.uniform(*LASTS_S.get(kind, (0, 0)))
        faults.append(Fault(kind, round(wait_s, 2), round(lasts_s, 2), round(rng.random(), 3)))
        wait_s = min(rng.expovariate(rate / 60), 120 / rate)
    return Plan(seed, rate, tuple(faults))
