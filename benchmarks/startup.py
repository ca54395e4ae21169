"""How long ``tokpipe run`` takes to its first clip, and what its processes keep in memory.

Everything stands beside what an empty Ray job costs on the same machine at the same time: a new
local Ray, and one actor that returns 1.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, Result
from benchmarks.processes import cpu_seconds, descendants, keep_to_cores, memory_mb
from benchmarks.sample_job import sample_job
from benchmarks.timing import by_turns, ratio

CORES = 2
CLIPS = 8
Facts = dict[str, float]
_IMPORTS = {
    "tokpipe --help": ["-m", "tokpipe.cli", "--help"],
    "import of tokpipe check": ["-c", "import tokpipe.cli.command, tokpipe.verbs.check"],
    "import of tokpipe run": ["-c", "import tokpipe.cli.command, tokpipe.runtime.job"],
}


def run(quick: bool) -> Iterator[Result]:
    """Imports, then whole runs and empty Ray jobs in turn."""
    yield from _imports(1 if quick else 9)
    found: dict[str, list[Facts]] = defaultdict(list)
    for _ in range(1 if quick else 5):
        for what in ("empty", "run"):
            with tempfile.TemporaryDirectory() as folder:
                job = sample_job(Path(folder), CLIPS).model_dump_json(exclude_unset=True)
                (Path(folder) / "job.yaml").write_text(job)
                found[what].append(_in_process(what, Path(folder)))
    yield from _times(found["run"], found["empty"])
    yield from _memory(found["run"], found["empty"])


def _imports(rounds: int) -> Iterator[Figure]:
    programs = {"python -c pass": ["-c", "pass"], **_IMPORTS}
    calls = {name: partial(_call, arguments) for name, arguments in programs.items()}
    times = by_turns(calls, rounds=rounds)
    nothing = times.pop("python -c pass")
    for name, one in times.items():
        details = {"seconds": one.median, "python_s": nothing.median}
        yield Figure(f"{name} / python -c pass", ratio(one, nothing), "x", None, "lower", details)


def _call(arguments: list[str]) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def _in_process(what: str, folder: Path) -> Facts:
    """What this module prints as the program of a new process."""
    # By default workers yield to all other programs.
    environment = os.environ | {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-m", "benchmarks.startup", what, str(folder), str(time.time())]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    facts: Facts = json.loads(done.stdout.splitlines()[-1])
    return facts


def _times(runs: list[Facts], empty: list[Facts]) -> Iterator[Figure]:
    for stage in ("decode", "encode"):
        shares = [one[stage] / other["first"] for one, other in zip(runs, empty, strict=True)]
        details = {
            "seconds": statistics.median(one[stage] for one in runs),
            "cpu_s": statistics.median(one[f"{stage}_cpu_s"] for one in runs),
            "empty_ray_job_s": statistics.median(one["first"] for one in empty),
            "empty_ray_job_cpu_s": statistics.median(one["first_cpu_s"] for one in empty),
            "rounds": len(runs),
        }
        name = f"tokpipe run to its first {stage}d clip / empty Ray job, {CORES} cores"
        remark = (
            "both from the start of their process, with a new local Ray; cpu_s of all processes"
        )
        yield Figure(name, statistics.median(shares), "x", None, "lower", details, remark)


def _memory(runs: list[Facts], empty: list[Facts]) -> Iterator[Figure]:
    kinds = ("pss", "rss", "uss")
    baseline = {f"empty_actor_{kind}": _median(empty, f"actor_{kind}") for kind in kinds}
    names = {
        "decode": "a decode actor and its child",
        "encode": "an encode actor, tiny model on a CPU",
        "write": "a write actor",
        "driver": "the driver",
        "ray": "Ray's own processes",
    }
    for key, name in names.items():
        pss, rss, uss = (_median(runs, f"{key}_{kind}") for kind in kinds)
        details = {"rss": rss, "uss": uss, **baseline}
        if key == "decode":
            details |= {f"child_{kind}": _median(runs, f"child_{kind}") for kind in kinds}
        if key == "ray":
            details["empty_ray_pss"] = _median(empty, "ray_pss")
        target = 200.0 if key == "decode" else None
        remark = "pss: pages that n processes share count 1/n in each; rss counts them whole"
        yield Figure(f"memory of {name}", pss, "MB", target, "lower", details, remark)


def _median(runs: list[Facts], name: str) -> float:
    return round(statistics.median(one[name] for one in runs), 1)


# --- in a new process ---------------------------------------------------------------------------


def _empty_job(began: float) -> Facts:
    import ray

    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    actor: Any = ray.remote(_Empty).remote()
    ray.get(actor.work.remote())
    first = {"first": time.time() - began, "first_cpu_s": cpu_seconds()}
    return {**first, **_all_memory({"actor": "ray::_Empty"})}


class _Empty:
    def work(self) -> int:
        return 1


def _job(folder: Path, began: float) -> Facts:
    """``tokpipe run`` with a stopwatch in the dispatcher."""
    from tokpipe.cli import main
    from tokpipe.runtime.dispatch import Dispatcher
    from tokpipe.runtime.dispatch.protocol import Command, Event, Finish, LeaseDone

    facts: Facts = {}
    handle = Dispatcher.handle

    def watched(self: Dispatcher, event: Event, now: float) -> list[Command]:
        flight = self.fleet.attempts.get(event.attempt) if isinstance(event, LeaseDone) else None
        if flight and (stage := flight.lease.stage) not in facts:
            facts[stage], facts[f"{stage}_cpu_s"] = time.time() - began, cpu_seconds()
        commands = handle(self, event, now)
        if commands and isinstance(commands[-1], Finish):
            actors = {
                stage: f"ray::{stage.title()}Actor" for stage in ("decode", "encode", "write")
            }
            facts.update(_all_memory({**actors, "child": "tokpipe.media.child"}))
            for kind in ("pss", "rss", "uss"):
                facts[f"decode_{kind}"] += facts[f"child_{kind}"]
        return commands

    Dispatcher.handle = watched  # type: ignore[method-assign]
    assert main(["run", str(folder / "job.yaml")]) == 0
    return facts


def _all_memory(names: dict[str, str]) -> Facts:
    """MB of this process, of the named processes below it (one of each) and of all other ones."""
    facts = {f"driver_{kind}": mb for kind, mb in memory_mb(os.getpid()).items()}
    facts |= {f"ray_{kind}": 0.0 for kind in ("pss", "rss", "uss")}
    for pid in descendants():
        command = Path(f"/proc/{pid}/cmdline").read_text()
        key = next((key for key, name in names.items() if name in command), "ray")
        for kind, mb in memory_mb(pid).items():
            facts[f"{key}_{kind}"] = mb + (facts[f"ray_{kind}"] if key == "ray" else 0.0)
    return facts


if __name__ == "__main__":
    what, place, at = sys.argv[1:]
    keep_to_cores(CORES)
    print(json.dumps(_empty_job(float(at)) if what == "empty" else _job(Path(place), float(at))))
