"""Does ``infra.spot`` say what runs then cost? ``python -m tests.chaos.spot``

Nodes of a real Ray come and go as in a trace, each run from another moment of it, and are paid for
as in the trace. Before that, one calm run is timed, and the trace is played, with its times.
"""

import argparse
import itertools
import json
import math
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from ray.cluster_utils import Cluster

from infra.spot import play
from infra.spot.forecast import Plays, Range, SpotForecast, measured
from infra.spot.trace import Change, Trace
from tests.chaos.world import signal_all
from tests.end_to_end.jobs import files, slow_tokenizer, start, write_job, write_videos
from tests.end_to_end.processes import descendants_of
from tokpipe.config import load_job
from tokpipe.storage import Store

NUM_CLIPS, CLIP_S = 16, 1.0
MOST_NODES = 3
PRICES = (600.0, 900.0, 1500.0)
"""Of a node per hour: a run costs some units."""
TRACE_S = 600.0


def write_trace(path: Path, seed: int) -> None:
    """Every 3 to 15 s, a node goes or comes, or the price changes."""
    rng, at_s, nodes = random.Random(seed), 0.0, MOST_NODES
    lines = ["time,kind,nodes,price,cpus,gpus"]
    while at_s < TRACE_S:
        lines.append(f"{at_s:.1f},cpu,{nodes},{rng.choice(PRICES):g},1,0")
        at_s += rng.uniform(3.0, 15.0)
        nodes = min(MOST_NODES, max(1, nodes + rng.choice([-1, -1, 0, 1, 1])))
    path.write_text("\n".join(lines) + "\n")


class Nodes:
    """The nodes of a cluster, as a trace has them, and what they have cost."""

    def __init__(self) -> None:
        self.cluster: Any = Cluster()
        self.cluster.add_node(num_cpus=0, include_dashboard=False)
        self._nodes: list[Any] = []
        self.join_s: list[float] = []
        """How long each took to join."""

    def set_number(self, number: int, rng: random.Random) -> None:
        while len(self._nodes) < number:
            began = time.monotonic()
            self._nodes.append(self.cluster.add_node(num_cpus=1))
            self.join_s.append(time.monotonic() - began)
        while len(self._nodes) > number:
            node = self._nodes.pop(rng.randrange(len(self._nodes)))
            workers = descendants_of(node.all_processes["raylet"][0].process.pid)
            self.cluster.remove_node(node, allow_graceful=False)
            signal_all(workers, signal.SIGKILL)

    def follow(
        self, trace: Trace, offset_s: float, seed: int, over: threading.Event
    ) -> tuple[float, float]:
        """Follow a trace from a moment on, until the run is over; return its seconds and cost."""
        rng, began = random.Random(seed), time.monotonic()
        cost, number, price, paid_until = 0.0, 0, 0.0, 0.0
        never = Change(math.inf, "", 0, 0.0)  # after the only line of a trace
        for change in itertools.chain(trace.since(offset_s), [never]):
            left_s = began + change.at_s - time.monotonic()
            is_over = over.wait(None if change is never else max(0.0, left_s))
            until = time.monotonic() - began if is_over else change.at_s
            cost += number * price * (until - paid_until) / 3600
            if is_over:
                break
            number, price, paid_until = change.nodes, change.price, until
            self.set_number(number, rng)
        self.set_number(0, rng)
        return until, cost


@dataclass(frozen=True)
class Real:
    """A run that took place."""

    offset_s: float
    duration_s: float
    cost: float


def run(folder: Path, nodes: Nodes, trace: Trace, offset_s: float, seed: int) -> tuple[Path, Real]:
    """Run the job once. Time counts from when its driver looks for nodes."""
    job = write_job(
        folder / f"{seed}.yaml",
        files(folder / "videos"),
        str(folder / f"out{seed}"),
        output={"uri": str(folder / f"out{seed}"), "shard_bytes": 2048, "shard_max_age_s": 3.0},
        tokenizer=slow_tokenizer(until=folder / "never", pause_s=CLIP_S),
        runtime={"progress_interval_s": 1, "clips_per_lease": 2, "max_attempts": 20},
    )
    driver = start(job, nodes.cluster.address)
    assert driver.stdout is not None
    while "plan rows" not in driver.stdout.readline():
        assert driver.poll() is None
    over = threading.Event()
    lines: list[str] = []
    thread = threading.Thread(target=_read, args=(driver.stdout, lines, over))
    thread.start()
    duration_s, cost = nodes.follow(trace, offset_s, seed, over)  # Ray wants the main thread
    thread.join()
    assert driver.wait() == 0, "".join(lines)
    return job, Real(offset_s, duration_s, cost)


def _read(output: TextIO, lines: list[str], over: threading.Event) -> None:
    for line in output:
        lines.append(line)
        if "done after" in line:
            over.set()
    over.set()


def calibrate(num_runs: int, seed: int = 0) -> tuple[SpotForecast, list[Real]]:
    """Forecast the job, then run it."""
    with tempfile.TemporaryDirectory(prefix="spot-", ignore_cleanup_errors=True) as name:
        folder, nodes = Path(name), Nodes()
        try:
            write_videos(folder / "videos", NUM_CLIPS, num_frames=9)
            write_trace(folder / "trace.csv", seed)
            (folder / "calm.csv").write_text(
                f"time,kind,nodes,price,cpus,gpus\n0,cpu,{MOST_NODES - 1},900,1,0\n"
            )
            calm = Trace.read(folder / "calm.csv")
            job, real = run(folder, nodes, calm, 0.0, 0)
            print(f"calm: {real}")
            config = load_job(job)
            pace = measured(Store(config.output.uri, config.storage))
            play.NODE_START_S = statistics.mean(nodes.join_s) * 1.5  # one by one
            played = Plays(config, NUM_CLIPS, pace, calm).forecast({}).given
            print(f"the same, played: {played.text}")
            print(f"{pace}, nodes join in {play.NODE_START_S:.1f} s")
            trace = Trace.read(folder / "trace.csv")
            plays = Plays(config, NUM_CLIPS, pace, trace)
            forecast = plays.forecast({})
            print(*forecast.lines(), sep="\n", flush=True)
            rng, runs = random.Random(seed), []
            for number in range(1, num_runs + 1):
                _, real = run(folder, nodes, trace, rng.uniform(0, trace.period_s), number)
                runs.append(real)
                print(f"{number}: {real}", flush=True)
        finally:
            nodes.cluster.shutdown()
    return forecast, runs


def share_within(runs: list[Real], name: str, expected: Range) -> float:
    """The fraction of the runs that lie between P10 and P90."""
    values = [float(getattr(one, name)) for one in runs]
    return statistics.mean(expected.p10 <= value <= expected.p90 for value in values)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.spot", description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here too")
    parsed = parser.parse_args()
    forecast, runs = calibrate(parsed.runs, parsed.seed)
    found = {
        name: share_within(runs, name, getattr(forecast.given, name))
        for name in ("cost", "duration_s")
    }
    print(f"between P10 and P90: {found}")
    if parsed.json:
        given = forecast.given._asdict()
        parsed.json.write_text(
            json.dumps({"within": found, "forecast": given, "runs": [asdict(o) for o in runs]})
        )
    return 0 if found["cost"] >= 0.8 else 1


if __name__ == "__main__":
    sys.exit(main())
