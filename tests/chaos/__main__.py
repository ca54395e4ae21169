"""The long form of the kill matrix: ``python -m tests.chaos``; exit code 0 if nothing is wrong."""

import argparse
import contextlib
import itertools
import signal
import sys
import time
import traceback
from collections.abc import Iterable
from pathlib import Path

from tests.chaos.faults import WEIGHTS, Plan, draw_plan
from tests.chaos.lives import Result
from tests.chaos.matrix import right_codes, run_plan
from tests.chaos.summary import summary_lines, to_json
from tests.chaos.world import World, built_world
from tests.end_to_end.jobs import Table

NUM_VIDEOS = 120
MINUTES_OF_A_RUN = 1.5
"""How long a run is expected to take before the first one has ended."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seed", type=int, help="one run")
    which.add_argument("--seeds", metavar="A:B", help="runs A to B, without B")
    parser.add_argument("--minutes", type=float, help="start no run that would end after this")
    parser.add_argument("--kinds", nargs="+", choices=list(WEIGHTS), default=list(WEIGHTS))
    parser.add_argument("--videos", type=int, default=NUM_VIDEOS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here too")
    parsed = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # it is a file
    seeds: Iterable[int] = itertools.count()
    if parsed.seed is not None:
        seeds = [parsed.seed]
    elif parsed.seeds:
        first, end = map(int, parsed.seeds.split(":"))
        seeds = range(first, end)
    elif parsed.minutes is None:
        parsed.minutes = 35.0

    started = time.monotonic()
    results: list[Result] = []
    # The summary is printed even if a signal ends it early.
    with contextlib.suppress(KeyboardInterrupt, SystemExit), built_world(parsed.videos) as world:
        right = right_codes(world)
        print(f"{len(right)} chunks; ready after {time.monotonic() - started:.0f} s")
        if world.cannot:
            print(f"left out on this machine: {', '.join(sorted(world.cannot))}")
        for seed in seeds:
            elapsed_min = (time.monotonic() - started) / 60
            of_a_run = max([r.elapsed_s / 60 for r in results[-5:]] or [MINUTES_OF_A_RUN])
            if parsed.minutes is not None and elapsed_min + of_a_run > parsed.minutes:
                break
            plan = draw_plan(seed, parsed.kinds)
            print(f"seed {seed}: {plan.rate_per_minute:.0f} faults/min")
            # Set for each run, because Ray replaces the handler when it starts a node.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            result = _run(world, plan, right)
            print(f"  {'ok' if result.is_good else 'BAD'} in {result.elapsed_s:.0f} s")
            results.append(result)
    elapsed_s = time.monotonic() - started
    for line in summary_lines(results, elapsed_s):
        print(line)
    if parsed.json:
        parsed.json.write_text(to_json(results, elapsed_s))
    return 0 if results and all(result.is_good for result in results) else 1


def _run(world: World, plan: Plan, right: Table) -> Result:
    """One run, and a second try on a new cluster if the test itself failed."""
    for _ in range(2):
        try:
            return run_plan(world, plan, right)
        except Exception:
            trouble = traceback.format_exc()
            print(f"  the test itself failed:\n{trouble}")
            world.stop()
            world.start()
    return Result(plan, problems=[f"the test itself failed:\n{trouble}"])


if __name__ == "__main__":
    sys.exit(main())
