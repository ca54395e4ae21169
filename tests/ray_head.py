"""A Ray cluster as `ray start` makes it: its own folder, environment, token and ports."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.end_to_end.jobs import wait_until

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    """A head node that is running."""

    url: str
    """Address of its dashboard, with the job API."""
    address: str
    """Address of the cluster, for drivers that join it."""
    folder: Path
    """Its session's files: logs, packages, sockets."""
    log: Path


@contextlib.contextmanager
def running_head(
    cwd: Path,
    environment: Mapping[str, str],
    *,
    ray: Path = BIN / "ray",
    folder: Path | None = None,
) -> Iterator[Head]:
    """Run ``ray start --head`` in a folder; stop it after the block.

    Nothing of this process's environment gets there but PATH, with this Python's folder first.
    Ray's files are in ``folder``.
    """
    # A short path, because it begins the names of Ray's sockets.
    folder = folder or Path(tempfile.mkdtemp(prefix="r-", dir="/tmp"))
    folder.mkdir(exist_ok=True)
    for _ in range(3):  # Ray gives a node 30 s to start, which a busy machine may exceed
        process, head = _start(cwd, environment, ray, folder)
        if process.poll() is None:
            break
    try:
        assert process.poll() is None, head.log.read_text()
        yield head
    finally:
        process.terminate()
        try:
            process.wait(300)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _start(
    cwd: Path, environment: Mapping[str, str], ray: Path, folder: Path
) -> tuple[subprocess.Popen[bytes], Head]:
    """Start the head, and wait until it is ready or has ended."""
    port, dashboard, agent, client = free_ports(4)
    with (folder / "out.log").open("wb") as log:
        process = subprocess.Popen(
            [
                str(ray), "start", "--head", "--block", f"--port={port}", "--num-cpus=2",
                "--disable-usage-stats", f"--dashboard-port={dashboard}", f"--temp-dir={folder}",
                f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}",
            ],
            cwd=cwd,
            env={**plain_environment(), **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
    url, address = f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{port}"
    head = Head(url, address, folder, folder / "out.log")
    try:
        wait_until(lambda: _is_ready(head) or process.poll() is not None, every_s=0.5)
    except AssertionError:
        process.terminate()
        raise
    return process, head


def plain_environment() -> dict[str, str]:
    """What a login would set, this Python first on the path, and this process's libraries."""
    kept = {"LANG", "PYTHONPATH", "OMP_WAIT_POLICY", "PYTHONDONTWRITEBYTECODE"}
    return {
        **{name: value for name, value in os.environ.items() if name in kept},
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_worker_niceness": "0",
    }


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _is_ready(head: Head) -> bool:
    if "Ray runtime started" not in head.log.read_text():
        return False  # its dashboard may answer already
    try:
        urllib.request.urlopen(f"{head.url}/api/version", timeout=5).close()
    except urllib.error.HTTPError as refusal:
        refusal.close()
        return refusal.code == 401  # it asks for the token
    except OSError:
        return False
    return True
