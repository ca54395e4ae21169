"""One run of the kill matrix: a job, the faults of its seed, lives until it is done, the check."""

import contextlib
import functools
import io
import os
import random
import re
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.chaos.faults import Fault, Plan
from tests.chaos.lives import REPLACED_ENDS_S, Driver, Lives, Result
from tests.chaos.weather import KINDS as WEATHER
from tests.chaos.world import World, signal_all
from tests.end_to_end.jobs import (
    Table,
    assert_complete,
    codes_of,
    codes_without_ray,
    rejections_of,
)
from tests.end_to_end.processes import descendants_of, pids_of
from tokpipe.cli import main
from tokpipe.config import load_job
from tokpipe.config.job import JobConfig
from tokpipe.errors import CorruptOutput
from tokpipe.formats import job_record
from tokpipe.formats.manifest import iter_entries, load_state
from tokpipe.storage import Store

ENTRY = re.compile(r"manifest/\d{8}\.json")
ZOMBIES_LIVE_S = 8.0
"""From the thaw of a node to its end."""

VICTIMS = {
    "kill_decode": "DecodeActor",
    "kill_encode": "EncodeActor",
    "kill_write": "WriteActor",
    "kill_child": "tokpipe.media.child",
}
LASTING: dict[str, tuple[Callable[[World, float], bool], Callable[[World], None]]] = {
    "remove_node": (World.remove_node, World.renew),
    "disk_full": (World.fill_disk, World.empty_disks),
    "credentials_expire": (World.expire_credentials, World.renew_credentials),
    "clock_jump": (World.shift_clock, World.right_clocks),
    "other_hardware": (World.replace_by_capped, World.renew),
    "tmp_cleaner": (World.start_cleaner, World.stop_cleaner),
    "mount_gone": (World.take_mount_away, World.bring_back_mount),
}
"""How the world does it, and how it undoes it after a while."""
DEADLY: dict[str, Callable[[World, float], bool]] = {
    "kill_raylet": World.kill_raylet,
    "kill_gcs": World.kill_gcs,
    "shm_full": World.fill_shm,
    "spill_full": World.hog_object_store,
}
"""What may end nodes, or the whole cluster: they are replaced after a while."""


class Run(Lives):
    """Carries out the faults of one plan."""

    # --- faults ---------------------------------------------------------------------------------

    def _try(self, fault: Fault) -> bool:
        strike = functools.partial(getattr(self, f"_{fault.kind}", self._strike), fault)
        if not strike():
            return False
        self.result.struck.append((round(self._now(), 2), fault.kind))
        self._say(f"    {self._now():5.1f} s: {fault.kind} ({fault.lasts_s:.0f} s)")
        return True

    def _strike(self, fault: Fault) -> bool:
        """Let a fault of a kind strike that needs nothing from the drivers."""
        if fault.kind in VICTIMS:
            pids = sorted(pids_of(VICTIMS[fault.kind]))
            signal_all(pids[int(fault.pick * len(pids)) :][:1], signal.SIGKILL)
            return bool(pids)
        if fault.kind in WEATHER:
            self.world.weather.blow(fault.kind, fault.lasts_s)
            return bool(self._drivers)
        if fault.kind in DEADLY:
            strike, undo = DEADLY[fault.kind], self._revive
        else:
            strike, of_world = LASTING[fault.kind]
            undo = functools.partial(of_world, self.world)
        if not self._drivers or not strike(self.world, fault.pick):
            return False
        self._after(fault.lasts_s, undo)
        return True

    def _revive(self) -> None:
        """Empty full disks and replace nodes that died, or the cluster if its head did."""
        self.world.empty_disks()
        if not self.world.revive():
            self._doom_all("its head died")

    def _doom_all(self, why: str) -> None:
        for driver in self._drivers:
            if not driver.is_local:
                driver.doomed = why
                driver.deadline_s = self._now() + REPLACED_ENDS_S

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

    def _stop_group(self, fault: Fault) -> bool:
        """SIGTERM to the group of a driver that has a Ray of its own."""
        driver = self._local_driver()
        if driver is None:
            return False
        driver.doomed = "stopped"
        driver.deadline_s = self._now() + REPLACED_ENDS_S
        os.killpg(driver.process.pid, signal.SIGTERM)
        return True

    def _job_stop(self, fault: Fault) -> bool:
        """Do as ``ray job stop``: SIGTERM to a job and all below it, SIGKILL after 3 s."""
        driver = self._lively()
        if driver is None or driver.is_local or not driver.has_printed("encode [1-9]"):
            return False
        driver.doomed = "stopped as Ray stops jobs"
        pids = {driver.process.pid, *descendants_of(driver.process.pid)}
        signal_all(pids, signal.SIGTERM)
        self._after(
            3.0, lambda: signal_all(pids & set(descendants_of(os.getpid())), signal.SIGKILL)
        )
        return True

    def _local_driver(self) -> Driver | None:
        """A driver with a Ray of its own that encodes; one is started if there is none."""
        driver = self._lively()
        if driver is None or not _handles_signals(driver):
            return None
        if not driver.is_local:
            self._next_is_local = True
            self._stop_driver(Fault("stop_driver", 0.0))
            return None
        return driver if driver.has_printed("encode [1-9]") else None

    def _manifest_lost(self, fault: Fault) -> bool:
        """Between two lives an entry of the manifest is gone; it is restored before the next."""
        driver, config = self._lively(), load_job(self.job)
        store = Store(config.output.uri, config.storage)
        is_alone = driver is not None and len(self._drivers) == 1 and not self._later
        if driver is None or not is_alone or not driver.has_printed("write [1-9]"):
            return False
        if sum(1 for _ in store.list("manifest/")) < 4:
            return False
        self.world.weather.calm()
        driver.doomed = "killed"
        driver.send(signal.SIGKILL)
        driver.process.wait()
        self._look_after(driver)
        with entry_taken_away(store, fault.pick):
            silent = silent_verbs(config)
            driver = self._start_driver()
            driver.may_end = CorruptOutput.exit_code
            code = driver.process.wait(REPLACED_ENDS_S)
            if code not in (5, 7, CorruptOutput.exit_code):
                silent.append("run")
            self._look_after(driver)
        self.result.add_silent(silent)
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
        self._doom_all("its head was replaced")
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
    return driver.has_printed("plan rows")


# --- the check ----------------------------------------------------------------------------------


def check(result: Result, job: Path, right: Table) -> None:
    """Compare a finished job's output with the right codes, chunk by chunk."""
    config = load_job(job)
    try:
        table = codes_of(job)
        assert_complete(job)
        rejected = rejections_of(job)
        store = Store(config.output.uri, config.storage)
        times = Counter(ref.clip_id for entry in iter_entries(store) for ref in entry.refs())
        result.goodput = load_state(store, job_record.read(store).num_rows).totals.goodput
    except Exception as error:
        result.problems.append(f"the output cannot be read: {error!r}")
        return
    result.num_lost = len(right.keys() - table.keys())
    result.num_doubled = sum(count > 1 for count in times.values())
    result.num_unequal = sum(right.get(key) != value for key, value in table.items())
    result.num_blamed = len(rejected)
    if rejected:
        result.problems.append(f"good videos are rejected: {rejected}")
    code, printed = _verb("audit", config.output.uri)
    if code:
        result.problems.append(f"audit ended with exit code {code}:\n{printed}")
    with entry_taken_away(store, random.Random(result.plan.seed).random()):
        result.add_silent(silent_verbs(config))


@contextlib.contextmanager
def entry_taken_away(store: Store, pick: float) -> Iterator[None]:
    """Within the block, one manifest entry is missing that others follow."""
    keys = sorted(one.key for one in store.list("manifest/") if ENTRY.fullmatch(one.key))[:-1]
    key = keys[int(pick * len(keys))]
    data = store.get(key)
    store.delete(key)
    try:
        yield
    finally:
        store.put(key, data)


def silent_verbs(config: JobConfig) -> list[str]:
    """Return the verbs that do not call an output damaged."""
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "audit": ["--partial"],
            "clean": ["--dry-run"],
            "export": ["--to", "memmap", "-o", f"{folder}/export"],
            "report": ["-o", f"{folder}/report.html"],
        }
        verbs = ("status", "ls", "inspect", "rejected", *options)
        return [
            verb
            for verb in verbs
            if _verb(verb, config.output.uri, *options.get(verb, []))[0] != CorruptOutput.exit_code
        ]


def _verb(*arguments: str) -> tuple[int, str]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        return main(list(arguments)), printed.getvalue()


def right_codes(world: World) -> Table:
    """The table that every run must produce."""
    world.hurry.touch()
    return codes_without_ray(world.write_job("right"))


def run_plan(world: World, plan: Plan, right: Table, say: Callable[[str], None] = print) -> Result:
    """Carry out one plan and check what the job made of it."""
    world.hurry.unlink(missing_ok=True)
    world.proxy.remember()
    job = world.write_job(f"seed{plan.seed}-{int(time.time())}")
    result = Run(world, plan, job, say).work()
    if result.lives and not any("not done" in problem for problem in result.problems):
        check(result, job, right)
    return result
