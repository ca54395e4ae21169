"""The lives of one job: a driver is started whenever none runs, until one ends with exit code 0."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.faults import Fault, Plan
from tests.chaos.world import World
from tests.s3_server import die_with_parent
from tokpipe.errors import Fenced

LIMIT_S = 1800.0
"""Of one run, from its first driver to the last one's end."""
MAX_LIVES = 25
AWAIT_TARGET_S = 300.0
"""How long a fault waits for something to strike, such as an actor of its kind."""
REPLACED_ENDS_S = 300.0
"""How long a driver that was replaced, or lost its cluster, may take to notice."""

FAIR_ENDS = {0, 5, 6, 7, 128 + signal.SIGTERM, -signal.SIGKILL}
"""Exit codes that faults may bring about: none of the others, such as 1 for a bug."""
RAYLET_LOST = "Raylet is terminated"
"""Ray says so when it ends a process, with exit code 1, whose own node is lost: the node of the
head in these runs, where drivers are."""
EXCUSES = {"store_empty": 8, "store_stale": 8, "mount_gone": 4}
"""Exit codes that a kind of fault may bring about: damage if a store says wrong things, too many
rejections if a source is gone."""
EXCUSED_S = 30.0
"""For how long after such a fault began."""


@dataclass
class Driver:
    """One life of the job."""

    process: subprocess.Popen[bytes]
    log: Path
    started_s: float
    doomed: str = ""
    """What was done to it that will end it."""
    may_end: frozenset[int] = frozenset()
    """Further exit codes that this may bring about."""
    is_local: bool = False
    """It has a Ray of its own."""
    deadline_s: float | None = None
    """When it must have ended by itself, because another driver or cluster took its place."""

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def has_printed(self, pattern: str) -> bool:
        return re.search(pattern, self.log.read_text(errors="replace")) is not None


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
    num_blamed: int = 0
    """Good clips that are rejected."""
    num_silent: int = 0
    """Verbs that did not say that an object of the output is missing."""
    problems: list[str] = field(default_factory=list)
    """Whatever else is wrong, such as unexpected exit codes."""
    elapsed_s: float = 0.0
    goodput: float | None = None
    """Of all lives, as the manifest has it."""

    def add_silent(self, verbs: list[str]) -> None:
        self.num_silent += len(verbs)
        if verbs:
            self.problems.append(f"an entry was missing, and {verbs} did not say so")

    @property
    def is_good(self) -> bool:
        wrong = self.num_lost + self.num_doubled + self.num_unequal + self.num_blamed
        return not (wrong or self.num_silent or self.problems)


class Lives:
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
        self._next_is_local = False

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

    def _try(self, fault: Fault) -> bool:
        """Let a fault strike; False if it finds nothing to strike (yet)."""
        raise NotImplementedError

    def _strike_what_is_due(self) -> None:
        if not self._todo:
            return
        fault, waited_s = self._todo[0], self._now() - self._last_fault_s
        if waited_s < fault.wait_s:
            return
        is_time = not fault.after or (
            bool(self._drivers) and self._drivers[-1].has_printed(fault.after)
        )
        if not is_time or not self._try(fault):
            if waited_s < fault.wait_s + AWAIT_TARGET_S and fault.kind not in self.world.cannot:
                return
            self.result.missed.append(fault.kind)
        self._todo.pop(0)
        self._last_fault_s = self._now()

    # --- drivers --------------------------------------------------------------------------------

    def _start_driver(self) -> Driver:
        number = len(self.result.lives) + len(self._drivers)
        log = self.job.with_suffix(f".{number}.log")
        environment = {**os.environ, "CHAOS_CLOCK": str(self.world.clocks[0])}
        is_local, self._next_is_local = self._next_is_local, False
        if not is_local:
            environment["RAY_ADDRESS"] = self.world.address
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "tokpipe.run", str(self.job)],
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,
                start_new_session=True,
            )
        driver = Driver(process, log, self._now(), is_local=is_local)
        self._drivers.append(driver)
        return driver

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
        elif code in self._excused(driver):
            self._say(f"      {said}")
        elif code not in FAIR_ENDS | driver.may_end:
            tail = "\n".join(printed.splitlines()[-25:])
            self.result.problems.append(f"a driver ended with exit code {code}:\n{tail}")
        elif driver.doomed == "stopped" and code != 128 + signal.SIGTERM:
            self.result.problems.append(f"SIGTERM ended a driver with exit code {code}, not 143")
        elif code in (5, 7):
            self._say(f"      {said}")

    def _excused(self, driver: Driver) -> set[int]:
        since_s = driver.started_s - EXCUSED_S
        return {EXCUSES.get(kind, 0) for at_s, kind in self.result.struck if at_s > since_s}

    def _had_company(self, driver: Driver) -> bool:
        """Whether any other driver lived at the same time."""
        ends = [life["to_s"] for life in self.result.lives[:-1]]
        return bool(self._drivers) or any(end > driver.started_s for end in ends)

    def _lively(self) -> Driver | None:
        """The newest driver that nothing has been done to."""
        return next((one for one in reversed(self._drivers) if not one.doomed), None)
