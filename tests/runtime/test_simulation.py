"""A thousand simulated jobs, none of which may lose or double a clip.

The test names a failing seed; ``Simulation(seed).run()`` replays it. ``make chaos`` plays 20,000.
"""

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from types import ModuleType
from typing import Any

import pytest

from tests.runtime.simulation import Simulation
from tokpipe.runtime.dispatch import Dispatcher
from tokpipe.runtime.dispatch.blame import Blame
from tokpipe.runtime.dispatch.fleet import Fleet
from tokpipe.runtime.dispatch.outbox import Outputs
from tokpipe.runtime.dispatch.protocol import Place
from tokpipe.runtime.dispatch.queues import Queues
from tokpipe.runtime.dispatch.settlement import Settlement
from tokpipe.runtime.dispatch.streams import StreamedClip, StreamedClips

NUM_SEEDS = int(os.environ.get("TOKPIPE_TEST_SEEDS", "1000"))
NUM_BATCHES = 40
SEEDS_PER_BUG = 300
"""A planted bug must be found within so many seeds; most are within ten."""


def play(seeds: range) -> Counter[str]:
    """Run seeds; return what went wrong in them, by kind."""
    seen: Counter[str] = Counter()
    for seed in seeds:
        simulation = Simulation(seed)
        try:
            assert_right(simulation, simulation.run())
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
        seen.update(simulation.seen)
    return seen


def assert_right(simulation: Simulation, fates: dict[tuple[int, int], str]) -> None:
    """Every clip has exactly one fate, and it is the right one."""
    expected = simulation.world.expected()
    for row, total in enumerate(simulation.world.num_segments):
        # Enough random losses, each while alone, reject an innocent clip. If that happens before
        # the number of segments is known, the clip is the whole row.
        if simulation.blamed[row, 0] >= 3 and fates.get((row, 0)) == "lost":
            for segment in range(1, total):
                if (row, segment) not in fates:
                    expected.pop((row, segment), None)
    assert fates.keys() == expected.keys(), f"{fates.keys() ^ expected.keys()}"
    for key, fate in fates.items():
        if fate != expected[key]:
            assert fate == "lost", f"{key}: {fate}, not {expected[key]}"
            assert simulation.blamed[key] >= 3, f"{key} was rejected though it was not to blame"


@pytest.mark.timeout(900)
def test_no_seed_loses_or_doubles_a_clip() -> None:
    step = NUM_SEEDS // NUM_BATCHES
    batches = [range(start, start + step) for start in range(0, NUM_SEEDS, step)]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        seen = sum(pool.map(play, batches), Counter())
    # A simulation in which nothing goes wrong would pass too: make sure that enough did.
    for kind in (
        *("clip kills", "actor lost", "node lost", "zombie", "fault", "storage", "node", "drained"),
        *("gave up", "streamed", "state lost", "stopped", "driver died", "driver froze", "fenced"),
        *("retried", "part of a batch", "reused"),
    ):
        assert seen[kind] > NUM_SEEDS / 40, f"{kind}: only {seen[kind]}"


def without(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method does nothing."""
    return lambda *_, **__: None


def only_once(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method works for the first call per object, and does nothing after."""
    called = set()

    def changed(self: Any, *args: Any, **kwargs: Any) -> Any:
        if id(self) not in called:
            called.add(id(self))
            return method(self, *args, **kwargs)
        return None

    return changed


BUGS: list[tuple[type | ModuleType, str, Callable[[Callable[..., Any]], object]]] = [
    (Fleet, "_leave", without),
    (Fleet, "_discount", without),
    (Fleet, "overdue", lambda old: lambda self: ()),
    (Outputs, "keep", lambda old: lambda self, source, at: old(self, source, at or [Place(0, 0)])),
    (Outputs, "keep", lambda old: lambda self, source, at: old(self, source, at[:1])),
    (Outputs, "use_up", without),
    (Fleet, "end", lambda old: lambda self, attempt: old(self, attempt) and None),
    (Queues, "add_segments", lambda old: lambda self, item, total: old(self, item, total - 1)),
    (Queues, "forget", without),
    (Queues, "put_back", without),
    (Queues, "next_encode", lambda old: lambda self, n, is_idle: old(self, n, is_idle=True)),
    (Queues, "next_encode", lambda old: lambda self, n, is_idle: old(self, n, is_idle=False)),
    (Queues, "add_decoded", lambda old: lambda self, clip, frames, n: old(self, clip, 5, n)),
    (Queues, "due_retries", lambda old: lambda self: iter(())),
    (Blame, "_strike", lambda old: lambda self, lease: 3),
    (Blame, "worker_failed", lambda old: lambda self, lease, *why: [lease]),
    (Blame, "stage_gave_up", lambda old: lambda self, lease, failed: 1.0),
    (Settlement, "reject", only_once),
    (Settlement, "written", only_once),
    (StreamedClip, "can_encode", lambda old: property(lambda self: self.next_piece in self.pixels)),
    (StreamedClips, "take_back", without),
    (StreamedClips, "has_ended", lambda old: lambda self, lease: False),
    (Dispatcher, "_lease_suspects", without),
    (Dispatcher, "_decode_again", without),
    (Dispatcher, "_end_streamed", lambda old: lambda self, clip: self.streams.end(clip)),
]


@pytest.mark.parametrize(("owner", "name", "plant"), BUGS)
def test_a_planted_bug_is_found(
    owner: type | ModuleType, name: str, plant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, plant(getattr(owner, name)))
    with pytest.raises(AssertionError, match="seed"):
        play(range(SEEDS_PER_BUG))
