"""What a run happens in: three nodes, a real S3 server behind a proxy, and videos to tokenize."""

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from tests.chaos.clock import build_shim, set_clock
from tests.chaos.weather import EXPIRED, Weather
from tests.end_to_end.jobs import slow_tokenizer, write_job, write_video
from tests.end_to_end.processes import descendants_of, pids_of
from tests.s3_server import S3Server, die_with_parent, fresh_bucket, running_s3_server
from tests.storage.fault_proxy import FaultProxy
from tokpipe.config.job import StoreOptions
from tokpipe.storage import Store

NUM_WORKER_NODES = 2
_HOG = """
import sys, time, ray
ray.init(sys.argv[1], log_to_driver=False)
held = []
while True:
    try:
        held.append(ray.put(bytes(2**20)))
    except Exception:
        time.sleep(0.1)
"""
DISK_BYTES = 32 * 2**20
"""Scratch space of a node: room for some videos, and quick to fill."""
STORE_BYTES = 80 * 2**20
"""Ray's least for a node's object store."""
ON_DISKS = {"disk_full", "shm_full", "spill_full", "tmp_cleaner"}
"""Faults that need file systems of their own."""
JUMP_S = 3 * 3600.0
CAPPED = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
"""What makes a node's CPU one of an older generation."""


@dataclass(frozen=True)
class Place:
    """What a node has for itself."""

    disk: Path | None
    """A small file system for scratch files and for what Ray spills."""
    shm: Path | None
    """Another one, for Ray's object store."""


class World:
    """Lives through many runs; ``restore`` makes it as good as new."""

    def __init__(self, folder: Path, server: S3Server, proxy: FaultProxy, weather: Weather) -> None:
        self.folder = folder
        self.server = server
        self.proxy = proxy
        self.bucket = fresh_bucket(server)
        self.mount = folder / "mount"
        """A folder with every second source; the others are in the bucket."""
        self.mount.mkdir()
        (folder / "gone").mkdir()
        self._keys = server.other_keys()
        self._key = ""
        self.renew_credentials()
        self.hurry = folder / "hurry"
        """While this file is missing, each clip takes two seconds."""
        self.weather = weather
        self._cluster: Cluster | None = None
        self._places: dict[Any, Place] = {}
        self._num_places = 0
        self.cannot: set[str] = set()
        """Kinds of faults that this machine has not what it takes for."""
        self._shim = build_shim(folder)
        self.clocks = folder / "clock-of-drivers", folder / "clock-of-nodes"
        if self._shim is None:
            self.cannot.add("clock_jump")
        self.right_clocks()
        self._cleaning = threading.Event()
        self._hog: subprocess.Popen[bytes] | None = None
        self._capped: list[Any] = []
        self.frozen: dict[Any, list[int]] = {}

    # --- the cluster ----------------------------------------------------------------------------

    @property
    def address(self) -> str:
        assert self._cluster is not None, "the cluster runs"
        return str(self._cluster.address)

    def start(self) -> None:
        self._cluster = Cluster()
        self._add_node(include_dashboard=False)
        self.renew()

    def stop(self) -> None:
        """End the cluster, frozen nodes included. The S3 server stays."""
        self.thaw_nodes()
        self.frozen = {}
        cluster, self._cluster = self._cluster, None
        if cluster is not None:
            for node in list(cluster.worker_nodes):
                cluster.remove_node(node, allow_graceful=False)
                self._drop_place(node)
            head: Any = cluster.head_node
            if head:
                workers = descendants_of(_raylet(head))
                cluster.shutdown()
                signal_all(workers, signal.SIGKILL)
                self._drop_place(head)
            self._capped = []

    def restore(self) -> None:
        """Undo whatever lasts: nodes thawed and replaced, disks emptied, the store at peace."""
        self.weather.calm()
        self.stop_cleaner()
        self.bring_back_mount()
        self.right_clocks()
        self.thaw_nodes()
        self._bury_thawed_nodes()
        self.empty_disks()
        for node in set(self._capped) & set(self._places):
            self._remove(node)
        self._capped = []
        self.revive()

    def revive(self) -> bool:
        """Replace nodes whose raylet is dead. False if the whole cluster had to be replaced."""
        assert self._cluster is not None, "the cluster runs"
        head: Any = self._cluster.head_node
        if head is None or _is_dead(head):
            self.stop()
            self.start()
            return False
        for node in list(self._cluster.worker_nodes):
            if _is_dead(node):
                self._remove(node)
        self.renew()
        return True

    def renew(self) -> None:
        """Bring the number of worker nodes back to what it was, unless the head is dead."""
        assert self._cluster is not None, "the cluster runs"
        if _is_dead(self._cluster.head_node):
            return  # Ray would ask it about a new node without an end
        while len(self._cluster.worker_nodes) < NUM_WORKER_NODES:
            self._add_node()

    def _add_node(self, environment: Mapping[str, str] | None = None, **arguments: Any) -> Any:
        assert self._cluster is not None, "the cluster runs"
        self._num_places += 1
        disk = self._make_disk(f"disk{self._num_places}", DISK_BYTES)
        # A little more than Ray asks for, since it writes some bytes beside the store.
        shm = self._make_disk(f"shm{self._num_places}", STORE_BYTES + 2**20)
        variables = dict(environment or {})
        if disk and shm:
            variables["TMPDIR"] = str(disk)
            arguments |= {
                "plasma_directory": str(shm),
                "object_store_memory": STORE_BYTES,
                "object_spilling_directory": str(disk),
            }
        for is_last in (False, False, True):  # Ray allows 30 s, which a busy machine may exceed
            try:
                node = self._cluster.add_node(num_cpus=1, env_vars=variables, **arguments)
                break
            except Exception:
                if is_last:
                    raise
        self._places[node] = Place(disk, shm)
        return node

    def replace_by_capped(self, pick: float) -> bool:
        """Replace a worker node by one with an older CPU, as far as torch can see."""
        assert self._cluster is not None, "the cluster runs"
        if self._capped or _is_dead(self._cluster.head_node) or not self.remove_node(pick):
            return False
        self._capped.append(self._add_node(CAPPED))
        return True

    def kill_raylet(self, pick: float) -> bool:
        """SIGKILL the raylet of any node, and nothing else of it."""
        nodes = [self._cluster.head_node, *self._nodes()] if self._cluster else []
        return self._kill("raylet", _picked(nodes, pick))

    def kill_gcs(self, pick: float) -> bool:
        return self._kill("gcs_server", self._cluster.head_node if self._cluster else None)

    def _kill(self, kind: str, node: Any) -> bool:
        if node is None or _is_dead(node):
            return False
        node.all_processes[kind][0].process.kill()
        return True

    def remove_node(self, pick: float) -> bool:
        """SIGKILL a worker node with all its processes; False if there is none to spare."""
        node = _picked(self._nodes(), pick)
        if node is None:
            return False
        self._remove(node)
        return True

    def _remove(self, node: Any) -> None:
        assert self._cluster is not None, "the cluster runs"
        workers = descendants_of(_raylet(node))
        self._cluster.remove_node(node, allow_graceful=False)
        signal_all(workers, signal.SIGKILL)
        self._drop_place(node)

    def _nodes(self) -> list[Any]:
        """Worker nodes that run, in an order that lasts."""
        if self._cluster is None:
            return []
        nodes = [node for node in self._cluster.worker_nodes if node not in self.frozen]
        return sorted(nodes, key=_raylet)

    def freeze_node(self, pick: float) -> bool:
        """SIGSTOP all processes of a worker node."""
        node = _picked(self._nodes(), pick)
        if node is None:
            return False
        self.frozen[node] = [_raylet(node), *descendants_of(_raylet(node))]
        signal_all(self.frozen[node], signal.SIGSTOP)
        return True

    def thaw_nodes(self) -> None:
        for pids in self.frozen.values():
            signal_all(pids, signal.SIGCONT)

    def _bury_thawed_nodes(self) -> None:
        """Remove nodes that were frozen: the cluster has given them up, whatever they believe."""
        for node in list(self.frozen):
            self._remove(node)
            del self.frozen[node]

    # --- scratch disks --------------------------------------------------------------------------

    def fill_disk(self, pick: float) -> bool:
        """Leave no byte free where a node with a decode actor keeps its scratch files."""
        place = self._place_of_decoder(pick)
        return place is not None and _fill(place.disk)

    def fill_shm(self, pick: float) -> bool:
        """Leave no page free for the object store of a node with a decode actor."""
        place = self._place_of_decoder(pick)
        return place is not None and _fill(place.shm)

    def hog_object_store(self, pick: float) -> bool:
        """Fill the object store of a node from another job, so that Ray spills to full disks."""
        if self._hog or self._cluster is None:
            return False
        for place in self._places.values():
            _fill(place.disk)
        self._hog = subprocess.Popen(
            [sys.executable, "-c", _HOG, self.address],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=die_with_parent,
        )
        return True

    def empty_disks(self) -> None:
        """End what fills disks and object stores."""
        if self._hog:
            self._hog.kill()
            self._hog.wait()
            self._hog = None
        for place in self._places.values():
            for folder in filter(None, (place.disk, place.shm)):
                (folder / "filler").unlink(missing_ok=True)

    def start_cleaner(self, pick: float) -> bool:
        """Delete whatever is in the TMPDIR of a node with a decode actor, over and over."""
        place = self._place_of_decoder(pick)
        if place is None or place.disk is None or self._cleaning.is_set():
            return False
        disk = place.disk
        self._cleaning.set()

        def clean() -> None:
            while self._cleaning.is_set():
                for found in disk.iterdir():
                    shutil.rmtree(found, ignore_errors=True)
                    found.unlink(missing_ok=True)
                time.sleep(0.1)

        threading.Thread(target=clean, daemon=True).start()
        return True

    def stop_cleaner(self) -> None:
        self._cleaning.clear()

    def _place_of_decoder(self, pick: float) -> Place | None:
        decoders = set(pids_of("DecodeActor"))
        nodes = [n for n in self._places if decoders.intersection(descendants_of(_raylet(n)))]
        node = _picked(sorted(nodes, key=_raylet), pick)
        return None if node is None else self._places[node]

    def _make_disk(self, name: str, size_bytes: int) -> Path | None:
        if self.cannot >= ON_DISKS:
            return None
        disk = self.folder / name
        disk.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(disk)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"no tmpfs may be mounted: {done.stderr.strip()}")
            self.cannot |= ON_DISKS
            return None
        return disk

    def _drop_place(self, node: Any) -> None:
        if place := self._places.pop(node, None):
            for folder in filter(None, (place.disk, place.shm)):
                subprocess.run(["umount", "-l", str(folder)], check=False)

    # --- clocks, credentials, sources -----------------------------------------------------------

    def shift_clock(self, pick: float) -> bool:
        """Set the clock of drivers, or that of nodes, three hours forward or back."""
        set_clock(self.clocks[int(pick * 2)], JUMP_S if int(pick * 1000) % 2 else -JUMP_S)
        return True

    def right_clocks(self) -> None:
        for clock in self.clocks:
            set_clock(clock, 0.0)

    def expire_credentials(self, pick: float) -> bool:
        """Let the store accept the access key no more that all processes have."""
        if self._key in self.weather.expired or not self._keys:
            return False
        self.weather.expired[self._key] = EXPIRED[len(self._keys) % 2]
        return True

    def renew_credentials(self) -> None:
        """Put another key into the file that processes have theirs from, if theirs is expired."""
        if self._key and self._key not in self.weather.expired:
            return
        self._key = self._keys.pop()
        path = self.folder / "credentials"
        new = path.with_suffix(".new")
        new.write_text(
            f"[default]\naws_access_key_id = {self._key}\n"
            f"aws_secret_access_key = {self.server.secret}\n"
        )
        new.replace(path)

    def environment(self) -> dict[str, str]:
        """Variables of nodes and drivers, which find their key in a file."""
        found = self.server.environment(self.proxy.endpoint)
        del found["AWS_ACCESS_KEY_ID"], found["AWS_SECRET_ACCESS_KEY"]
        found["AWS_SHARED_CREDENTIALS_FILE"] = str(self.folder / "credentials")
        if self._shim is not None:
            found |= {"LD_PRELOAD": str(self._shim), "CHAOS_CLOCK": str(self.clocks[1])}
        return found

    def take_mount_away(self, pick: float) -> bool:
        """Rename the local sources' folder; an empty one is left, as without its mount, or none."""
        if (self.folder / "gone/mount").exists():
            return False
        self.mount.rename(self.folder / "gone/mount")
        if pick < 0.5:
            self.mount.mkdir()
        return True

    def bring_back_mount(self) -> None:
        if (away := self.folder / "gone/mount").exists():
            if self.mount.exists():
                self.mount.rmdir()
            away.rename(self.mount)

    # --- jobs -----------------------------------------------------------------------------------

    def write_job(self, name: str) -> Path:
        """A job file from the bucket's videos to a prefix of its own in the same bucket."""
        return write_job(
            self.folder / "jobs" / f"{name}.yaml",
            [
                {"kind": "files", "uri": f"s3://{self.bucket}/raw/*.mp4"},
                {"kind": "files", "uri": f"{self.mount}/*.mp4"},
            ],
            f"s3://{self.bucket}/out/{name}",
            output={
                "uri": f"s3://{self.bucket}/out/{name}",
                "shard_bytes": 2048,
                "shard_max_age_s": 2.0,
            },
            tokenizer=slow_tokenizer(until=self.hurry, pause_s=2.0),
            runtime={
                "progress_interval_s": 2,
                "clips_per_lease": 2,
                "start_timeout_s": 300,
                "encode": {"max_actors": 2},  # each one imports torch
                # Kills strike at random: a clip that was there three times is still a good one.
                "max_attempts": 10,
            },
            storage={"deadline_s": 300},
        )


def _picked(targets: list[Any], pick: float) -> Any | None:
    return targets[int(pick * len(targets))] if targets else None


def _fill(folder: Path | None) -> bool:
    """Leave no byte free."""
    if folder is None:
        return False
    with (folder / "filler").open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(2**16))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    return True


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def _is_dead(node: Any) -> bool:
    """Whether what it cannot be without has ended, though nobody asked for it."""
    return any(kind in ("raylet", "gcs_server") for kind, _ in node.dead_processes())


def signal_all(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@contextlib.contextmanager
def built_world(num_videos: int) -> Iterator[World]:
    """A world with its videos in the bucket. The AWS variables name the proxy within the block."""
    with contextlib.ExitStack() as stack:
        # The dying may still write while their files are removed.
        temporary = tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True)
        folder = Path(stack.enter_context(temporary))
        (folder / "s3").mkdir()
        server = stack.enter_context(running_s3_server(folder / "s3"))
        weather = Weather()
        proxy = stack.enter_context(FaultProxy(server.endpoint, weather.decide))
        world = World(folder, server, proxy, weather)
        stack.enter_context(_environment(world.environment()))
        store = Store(f"s3://{world.bucket}/raw", StoreOptions())
        for index in range(num_videos):
            path = world.mount / f"clip{index:03}.mp4"
            write_video(path, 9 + 4 * (index % 5), seed=index)
            if index % 2:
                store.put(path.name, path.read_bytes())
                path.unlink()
        stack.callback(world.stop)
        world.start()
        yield world


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ.update(values)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
