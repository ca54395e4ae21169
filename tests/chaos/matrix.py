"""One run of the kill matrix: a job, the faults of its seed, lives until it is done, the check."""

import contextlib
import functools
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.faults import Fault, Plan
from tests.chaos.weather import KINDS as WEATHER
from tests.chaos.world import World
from tests.end_to_end.jobs import (
    Table,
    assert_complete,
    codes_of,
    codes_without_ray,
    rejections_of,
)
from tests.end_to_end.processes import pids_of
from tests.s3_server import die_with_parent
from tokpipe.cli import main
from tokpipe.config import load_job
from tokpipe.errors import Fenced
from tokpipe.formats import job_record
from tokpipe.formats.manifest import iter_entries, load_state
from tokpipe.storage import open_store

LIMIT_S = 1800.0
"""Of one run, from its first driver to the last one's end."""
MAX_LIVES = 25
AWAIT_TARGET_S = 300.0
"""How long a fault waits for something to strike, such as an actor of its kind."""
ZOMBIES_LIVE_S = 8.0
"""From the thaw of a node to its end."""
REPLACED_ENDS_S = 300.0
"""How long a driver that was replaced, or lost its cluster, may take to notice."""

VICTIMS = {
    "kill_decode": "DecodeActor",
    "kill_encode": "EncodeActor",
    "kill_write": "WriteActor",
    "kill_child": "tokpipe.media.child",
}
FAIR_ENDS = {0, 5, 6, 7, 128 + signal.SIGTERM, -signal.SIGKILL}
"""Exit codes that faults may bring about: none of the others, such as 1 for a bug."""
RAYLET_LOST = "Raylet is terminated"
"""Ray says so when it ends a process, with exit code 1, whose own node is lost: the node of the
head in these runs, where drivers are."""


@dataclass
class Driver:
    """One life of the job."""

    process: subprocess.Popen[bytes]
    log: Path
    started_s: float
    doomed: str = ""
    """What was done to it that will end it."""
    deadline_s: float | None = None
    """When it must have ended by itself, because another driver or cluster took its place."""

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


@dataclass
class Result:
    """What became of a run."""

    plan: Plan
    name: str = ""
    """Of its job file and its output."""
    struck: list[tuple[float, str]] = field(default_factory=list)
    """Seconds since the start, and kind, of each fault that found something to strike."""
    missed: list[str] = field(default_factory=list)
    """Faults that found nothing to strike."""
    lives: list[dict[str, Any]] = field(default_factory=list)
    num_lost: int = 0
    num_doubled: int = 0
    num_unequal: int = 0
    problems: list[str] = field(default_factory=list)
    """Whatever else is wrong, such as rejected clips and unexpected exit codes."""
    elapsed_s: float = 0.0
    goodput: float | None = None
    """Of all lives, as the manifest has it."""

    @property
    def is_good(self) -> bool:
        return not (self.num_lost or self.num_doubled or self.num_unequal or self.problems)


class Run:
    """Carries out one plan in a world that is intact before and after it."""

    def __init__(self, world: World, plan: Plan, job: Path, say: Callable[[str], None]) -> None:
        self.world = world
        self.job = job
        self.result = Result(plan, job.stem)
        self._say = say
        self._drivers: list[Driver] = []
        self._todo = list(plan.faults)
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._started = time.monotonic()
        self._last_fault_s = 0.0
        self._is_done = False

    def work(self) -> Result:
        """Run until a driver ends with exit code 0 and every other one has ended."""
        try:
            self._start_driver()
            while not (self._is_done and not self._drivers and not self._later):
                self._step()
                if self._now() > LIMIT_S or len(self.result.lives) > MAX_LIVES:
                    self.result.problems.append(f"not done after {self._now():.0f} s")
                    break
                time.sleep(0.05)
        finally:
            for driver in self._drivers:
                driver.process.kill()
                driver.process.wait()
            self.world.restore()
        self.result.elapsed_s = self._now()
        return self.result

    def _now(self) -> float:
        return time.monotonic() - self._started

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        self._later.append((self._now() + seconds, action))

    def _step(self) -> None:
        for item in [item for item in self._later if item[0] <= self._now()]:
            self._later.remove(item)
            item[1]()
        for driver in list(self._drivers):
            self._look_after(driver)
        if self._is_done:
            self._todo = []
        elif not self._drivers:
            self._start_driver()
        self._strike_what_is_due()
        if not self._todo:
            self.world.hurry.touch()

    def _strike_what_is_due(self) -> None:
        if not self._todo:
            return
        fault, waited_s = self._todo[0], self._now() - self._last_fault_s
        if waited_s < fault.wait_s:
            return
        printed = self._drivers[-1].log.read_text(errors="replace") if self._drivers else ""
        if not re.search(fault.after, printed) or not self._try(fault):
            if waited_s < fault.wait_s + AWAIT_TARGET_S:
                return
            self.result.missed.append(fault.kind)
        self._todo.pop(0)
        self._last_fault_s = self._now()

    # --- drivers --------------------------------------------------------------------------------

    def _start_driver(self) -> None:
        number = len(self.result.lives) + len(self._drivers)
        log = self.job.with_suffix(f".{number}.log")
        environment = {**os.environ, "RAY_ADDRESS": self.world.address}
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "tokpipe.run", str(self.job)],
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,
            )
        self._drivers.append(Driver(process, log, self._now()))

    def _look_after(self, driver: Driver) -> None:
        code = driver.process.poll()
        if code is None:
            if driver.deadline_s is not None and self._now() > driver.deadline_s:
                self._say(f"    {driver.doomed}: still there, so it is killed")
                driver.doomed += ", killed"
                driver.deadline_s = None
                driver.process.kill()
            return
        self._drivers.remove(driver)
        printed = driver.log.read_text(errors="replace")
        said = (printed.splitlines() or [""])[-1][:500]
        life = {
            "code": code,
            "said": said,
            "from_s": round(driver.started_s, 1),
            "to_s": round(self._now(), 1),
            "doomed": driver.doomed,
        }
        self.result.lives.append(life)
        self._say(
            f"    {self._now():5.1f} s: driver of {driver.started_s:.1f} s ended with exit code "
            f"{code}{f' ({driver.doomed})' if driver.doomed else ''}"
        )
        if code == 0:
            self._is_done = True
            for other in self._drivers:
                other.doomed = other.doomed or "outlived"
                other.deadline_s = other.deadline_s or self._now() + REPLACED_ENDS_S
        elif code == Fenced.exit_code and not self._had_company(driver):
            self.result.problems.append(f"a driver that was alone was fenced: {said}")
        elif code == 1 and RAYLET_LOST in printed:
            life["doomed"] = driver.doomed or "its node was lost"
        elif code not in FAIR_ENDS:
            tail = "\n".join(printed.splitlines()[-25:])
            self.result.problems.append(f"a driver ended with exit code {code}:\n{tail}")
        elif driver.doomed == "stopped" and code != 128 + signal.SIGTERM:
            self.result.problems.append(f"SIGTERM ended a driver with exit code {code}, not 143")
        elif code in (5, 7):
            self._say(f"      {said}")

    def _had_company(self, driver: Driver) -> bool:
        """Whether any other driver lived at the same time."""
        ends = [life["to_s"] for life in self.result.lives[:-1]]
        return bool(self._drivers) or any(end > driver.started_s for end in ends)

    def _lively(self) -> Driver | None:
        """The newest driver that nothing has been done to."""
        return next((one for one in reversed(self._drivers) if not one.doomed), None)

    # --- faults ---------------------------------------------------------------------------------

    def _try(self, fault: Fault) -> bool:
        """Let a fault strike; False if it finds nothing to strike (yet)."""
        strike = functools.partial(getattr(self, f"_{fault.kind}", self._kill_or_blow), fault)
        if not strike():
            return False
        self.result.struck.append((round(self._now(), 2), fault.kind))
        self._say(f"    {self._now():5.1f} s: {fault.kind} ({fault.lasts_s:.0f} s)")
        return True

    def _kill_or_blow(self, fault: Fault) -> bool:
        if fault.kind in WEATHER:
            self.world.weather.blow(fault.kind, fault.lasts_s)
            return bool(self._drivers)
        pids = sorted(pids_of(VICTIMS[fault.kind]))
        if not pids:
            return False
        try:
            os.kill(pids[int(fault.pick * len(pids))], signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def _remove_node(self, fault: Fault) -> bool:
        if not self.world.remove_node(fault.pick):
            return False
        self._after(fault.lasts_s, self.world.renew)
        return True

    def _disk_full(self, fault: Fault) -> bool:
        if not self.world.fill_disk(fault.pick):
            return False
        self._after(fault.lasts_s, self.world.empty_disks)
        return True

    def _kill_driver(self, fault: Fault) -> bool:
        driver = self._lively()
        if driver is None:
            return False
        driver.doomed = "killed"
        driver.send(signal.SIGKILL)
        return True

    def _stop_driver(self, fault: Fault) -> bool:
        driver = self._lively()
        if driver is None or not _handles_signals(driver):
            return False
        driver.doomed = "stopped"
        driver.deadline_s = self._now() + REPLACED_ENDS_S
        driver.send(signal.SIGTERM)
        return True

    def _freeze_driver(self, fault: Fault) -> bool:
        driver = self._lively()
        if driver is None:
            return False
        driver.doomed = "frozen, then replaced"
        driver.send(signal.SIGSTOP)
        self._start_driver()

        def thaw() -> None:
            driver.send(signal.SIGCONT)
            driver.deadline_s = self._now() + REPLACED_ENDS_S

        self._after(fault.lasts_s, thaw)
        return True

    def _two_drivers(self, fault: Fault) -> bool:
        if len(self._drivers) != 1 or self._lively() is None:
            return False
        self._after(fault.lasts_s, self._start_driver_beside)
        return True

    def _start_driver_beside(self) -> None:
        if not self._is_done:
            self._start_driver()

    def _new_head(self, fault: Fault) -> bool:
        for driver in self._drivers:
            driver.doomed = "its head was replaced"
            driver.deadline_s = self._now() + REPLACED_ENDS_S
        self.world.stop()
        self.world.start()
        return True

    def _freeze_node(self, fault: Fault) -> bool:
        if not self.world.freeze_node(fault.pick):
            return False
        self._after(fault.lasts_s, self.world.thaw_nodes)
        # In between, its processes finish what they were at.
        self._after(fault.lasts_s + ZOMBIES_LIVE_S, self.world.restore)
        return True


def _handles_signals(driver: Driver) -> bool:
    """Whether it has begun to work: before that, SIGTERM ends it like any process."""
    return b"plan rows" in driver.log.read_bytes()


# --- the check ----------------------------------------------------------------------------------


def check(result: Result, job: Path, right: Table) -> None:
    """Compare a finished job's output with the right codes, chunk by chunk."""
    config = load_job(job)
    try:
        table = codes_of(job)
        assert_complete(job)
        rejected = rejections_of(job)
        store = open_store(config.output.uri, config.storage)
        times = Counter(ref.clip_id for entry in iter_entries(store) for ref in entry.refs())
        result.goodput = load_state(store, job_record.read(store).num_rows).totals.goodput
    except Exception as error:
        result.problems.append(f"the output cannot be read: {error!r}")
        return
    result.num_lost = len(right.keys() - table.keys())
    result.num_doubled = sum(count > 1 for count in times.values())
    result.num_unequal = sum(right.get(key) != value for key, value in table.items())
    if rejected:
        result.problems.append(f"good videos are rejected: {rejected}")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = main(["audit", config.output.uri])
    if code:
        result.problems.append(f"audit ended with exit code {code}:\n{printed.getvalue()}")


def right_codes(world: World) -> Table:
    """The table that every run must produce."""
    world.hurry.touch()
    return codes_without_ray(world.write_job("right"))


def run_plan(world: World, plan: Plan, right: Table, say: Callable[[str], None] = print) -> Result:
    """Carry out one plan and check what the job made of it."""
    world.hurry.unlink(missing_ok=True)
    job = world.write_job(f"seed{plan.seed}-{int(time.time())}")
    result = Run(world, plan, job, say).work()
    if result.lives and not any("not done" in problem for problem in result.problems):
        check(result, job, right)
    return result
