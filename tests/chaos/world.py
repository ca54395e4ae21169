"""What a run happens in: three nodes, a real S3 server behind a proxy, and videos to tokenize."""

import contextlib
import errno
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from tests.chaos.weather import Weather
from tests.end_to_end.jobs import slow_tokenizer, write_job, write_video
from tests.end_to_end.processes import descendants_of, pids_of
from tests.s3_server import fresh_bucket, running_s3_server
from tests.storage.fault_proxy import FaultProxy
from tokpipe.config.job import StoreOptions
from tokpipe.storage import open_store

NUM_WORKER_NODES = 2
DISK_BYTES = 32 * 2**20
"""Scratch space of a node: room for some videos, and quick to fill."""


class World:
    """Lives through many runs; ``restore`` makes it as good as new."""

    def __init__(self, folder: Path, bucket: str, weather: Weather) -> None:
        self.folder = folder
        self.bucket = bucket
        self.hurry = folder / "hurry"
        """While this file is missing, each clip takes two seconds."""
        self.weather = weather
        self._cluster: Cluster | None = None
        self._disks: dict[Any, Path] = {}
        self._num_disks = 0
        self.can_mount = True
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
                self._drop_disk(node)
            head = cluster.head_node
            cluster.shutdown()
            self._drop_disk(head)

    def restore(self) -> None:
        """Undo whatever lasts: nodes thawed and replaced, disks emptied, the store at peace."""
        self.weather.calm()
        self.thaw_nodes()
        self._bury_thawed_nodes()
        self.empty_disks()
        self.renew()

    def renew(self) -> None:
        """Bring the number of worker nodes back to what it was at the start."""
        assert self._cluster is not None, "the cluster runs"
        while len(self._cluster.worker_nodes) < NUM_WORKER_NODES:
            self._add_node()

    def _add_node(self, **arguments: Any) -> None:
        assert self._cluster is not None, "the cluster runs"
        disk = self._make_disk()
        environment = {"TMPDIR": str(disk)} if disk else {}
        node = self._cluster.add_node(num_cpus=1, env_vars=environment, **arguments)
        if disk:
            self._disks[node] = disk

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
        _signal_all(workers, signal.SIGKILL)
        self._drop_disk(node)

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
        _signal_all(self.frozen[node], signal.SIGSTOP)
        return True

    def thaw_nodes(self) -> None:
        for pids in self.frozen.values():
            _signal_all(pids, signal.SIGCONT)

    def _bury_thawed_nodes(self) -> None:
        """Remove nodes that were frozen: the cluster has given them up, whatever they believe."""
        for node in list(self.frozen):
            self._remove(node)
            del self.frozen[node]

    # --- scratch disks --------------------------------------------------------------------------

    def fill_disk(self, pick: float) -> bool:
        """Leave no byte free where a node with a decode actor keeps its scratch files."""
        decoders = set(pids_of("DecodeActor"))
        nodes = [n for n in self._disks if decoders.intersection(descendants_of(_raylet(n)))]
        node = _picked(sorted(nodes, key=_raylet), pick)
        if node is None:
            return False
        disk = self._disks[node]
        with (disk / "filler").open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(2**16))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
        return True

    def empty_disks(self) -> None:
        for disk in self._disks.values():
            (disk / "filler").unlink(missing_ok=True)

    def _make_disk(self) -> Path | None:
        if not self.can_mount:
            return None
        self._num_disks += 1
        disk = self.folder / f"disk{self._num_disks}"
        disk.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"disk_full is left out: no tmpfs may be mounted ({done.stderr.strip()})")
            self.can_mount = False
            return None
        return disk

    def _drop_disk(self, node: Any) -> None:
        if disk := self._disks.pop(node, None):
            subprocess.run(["umount", "-l", str(disk)], check=False)

    # --- jobs -----------------------------------------------------------------------------------

    def write_job(self, name: str) -> Path:
        """A job file from the bucket's videos to a prefix of its own in the same bucket."""
        return write_job(
            self.folder / "jobs" / f"{name}.yaml",
            {"kind": "files", "uri": f"s3://{self.bucket}/raw/*.mp4"},
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
                # Kills strike at random: a clip that was there three times is still a good one.
                "max_attempts": 10,
            },
            storage={"deadline_s": 300},
        )


def _picked(targets: list[Any], pick: float) -> Any | None:
    return targets[int(pick * len(targets))] if targets else None


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def _signal_all(pids: list[int], number: signal.Signals) -> None:
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
        stack.enter_context(_environment(server.environment(proxy.endpoint)))
        world = World(folder, fresh_bucket(server), weather)
        store = open_store(f"s3://{world.bucket}/raw", StoreOptions())
        for index in range(num_videos):
            path = folder / f"clip{index:03}.mp4"
            write_video(path, 9 + 4 * (index % 5), seed=index)
            store.put(path.name, path.read_bytes())
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
