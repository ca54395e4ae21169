"""A small Slurm on this machine: nodes as namespaces, with stand-ins for slurmd, srun, scontrol.

Like a real node, each has its own network address, host name, processes, /tmp and /dev/shm, and
shares a folder, ``/mnt``, with the others. The stand-ins do what the sources of Slurm do: srun runs
its command once on each of its nodes, and answers SIGTERM by killing everything that it started.

    python slurm_nodes.py world NUM_NODES FOLDER    the nodes, until they are killed
    python slurm_nodes.py node INDEX                slurmd: runs and signals processes of its node
    python slurm_nodes.py srun|scontrol ...
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SHARED = Path("/mnt")
NAMESPACES = ["unshare", "--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--mount-proc"]
STEP = "SLURM_STEP_ID"


def sh(command: str) -> None:
    subprocess.run(command, shell=True, check=True)


def world(num_nodes: int, folder: str) -> None:
    """Start the nodes. Runs in namespaces itself, so that nothing outside can see them."""
    sh(f"mount --bind {folder} {SHARED} && mount --bind {SHARED}/hosts /etc/hosts")
    sh("ip link set lo up && ip link add br0 type bridge && ip link set br0 up")
    for index in range(num_nodes):
        sh(f"ip link add n{index} type veth peer name p{index}")
        sh(f"ip link set p{index} master br0 up")
        command = [*NAMESPACES, sys.executable, __file__, "node", str(index)]
        node = subprocess.Popen(command, stdin=subprocess.PIPE)
        # The first child of `unshare` is in the node's namespaces; it waits for its network.
        children = Path(f"/proc/{node.pid}/task/{node.pid}/children")
        while not children.read_text().split():
            pass
        sh(f"ip link set n{index} netns {children.read_text().split()[0]}")
        assert node.stdin is not None
        node.stdin.write(b"\n")
        node.stdin.close()
    sys.stdin.read()  # until the test closes it, or is gone; then all processes here end


def node(index: int) -> None:
    sys.stdin.readline()  # the network is there
    sh(f"hostname node-{index + 1} && ip link set lo up && ip link set n{index} name eth0")
    sh(f"ip addr add 10.77.0.{index + 1}/24 dev eth0 && ip link set eth0 up")
    sh("ip route add default via 10.77.0.254")
    # A checkout or an environment in /tmp stays, as if it were on the shared file system.
    kept = [path for path in (ROOT, Path(sys.prefix)) if path.is_relative_to("/tmp")]
    sh(f"mkdir -p {SHARED}/tmp && mount --rbind /tmp {SHARED}/tmp")
    sh("mount -t tmpfs tmpfs /tmp && mount -t tmpfs tmpfs /dev/shm")
    for path in kept:
        sh(f"mkdir -p '{path}' && mount --bind '{SHARED}{path}' '{path}'")
    sh("mkdir /tmp/ray && echo -n 10.77.0.9:6379 >/tmp/ray/ray_current_cluster")  # of a dead job
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(SHARED / f"node-{index + 1}.sock"))
    server.listen()
    while True:
        threading.Thread(target=_serve, args=server.accept()[:1], daemon=True).start()


def _serve(connection: socket.socket) -> None:
    data, fds, _, _ = socket.recv_fds(connection, 1 << 20, 2)
    request = json.loads(data)
    if "signal" in request:
        _signal(request)
        connection.sendall(b"0")
        return
    process = subprocess.Popen(
        request["argv"],
        env=request["env"],
        cwd=request["cwd"],
        stdin=subprocess.DEVNULL,
        stdout=fds[0],
        stderr=fds[1],
        start_new_session=True,
    )
    if STEP not in request["env"]:
        (SHARED / "batch.pid").write_text(str(process.pid))
    status = process.wait()
    if STEP in request["env"]:  # what a task leaves behind ends with it
        _signal({"signal": signal.SIGKILL, "step": True})
    for fd in fds:
        os.close(fd)
    with contextlib.suppress(OSError):
        connection.sendall(str(status if status >= 0 else 128 - status).encode())
    connection.close()


def _signal(request: dict[str, Any]) -> None:
    """Signal the batch script alone, or every process of the step on this node."""
    if not request["step"]:
        os.kill(int((SHARED / "batch.pid").read_text()), request["signal"])
        return
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"\0{STEP}=".encode() in b"\0" + (path / "environ").read_bytes():
                os.kill(int(path.name), request["signal"])


def ask(name: str, request: dict[str, Any], folder: Path = SHARED, *fds: int) -> socket.socket:
    """Ask a node to run or to signal something; the answer is a status."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(folder / f"{name}.sock"))
    out, err = (fds * 2)[:2] or (1, 2)
    socket.send_fds(connection, [json.dumps(request).encode()], [out, err])
    return connection


def node_names() -> list[str]:
    """The nodes of this job."""
    return [f"node-{index + 1}" for index in range(int(os.environ["SLURM_JOB_NUM_NODES"]))]


@dataclass
class Slurm:
    """The nodes, seen from outside."""

    folder: Path
    """``/mnt`` of each node."""

    def sbatch(self, job: str, num_nodes: int, **environment: str) -> socket.socket:
        """Start infra/slurm.sh as sbatch does: a copy, on the first node, in the shared folder."""
        binaries = f"/mnt/bin:{Path(sys.executable).parent}:/usr/bin:/bin:/usr/sbin:/sbin"
        env = {
            "PATH": binaries,
            "HOME": "/mnt/home",
            "PYTHONPATH": str(ROOT),
            "OMP_WAIT_POLICY": "passive",
            "SLURM_JOB_ID": "42",
            "SLURM_JOB_NODELIST": f"node-[1-{num_nodes}]",
            "SLURM_JOB_NUM_NODES": str(num_nodes),
            **environment,
        }
        request = {"argv": ["/mnt/spool/slurm_script", job], "env": env, "cwd": str(SHARED)}
        with (self.folder / "slurm.out").open("a") as output:
            return ask("node-1", request, self.folder, output.fileno())

    def signal_batch(self, number: int) -> None:
        """Do what ``scancel --batch --signal`` and ``#SBATCH --signal=B:`` do."""
        with ask("node-1", {"signal": number, "step": False}, self.folder) as asked:
            asked.recv(16)


@contextlib.contextmanager
def running_slurm(num_nodes: int) -> Iterator[Slurm]:
    with tempfile.TemporaryDirectory(prefix="slurm-") as name:  # sockets need a short path
        folder = Path(name)
        lines = [f"10.77.0.{index + 1} node-{index + 1}\n" for index in range(num_nodes)]
        (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines))
        for part in ("bin", "home", "spool"):
            (folder / part).mkdir()
        for verb in ("srun", "scontrol"):
            script = folder / "bin" / verb
            script.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {verb} "$@"\n')
            script.chmod(0o755)
        shutil.copy(ROOT / "infra/slurm.sh", folder / "spool/slurm_script")
        # Root of namespaces of its own, where this process is not root already.
        user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        command = [*NAMESPACES[:1], *user, *NAMESPACES[1:], "--kill-child", sys.executable]
        command += [__file__, "world", str(num_nodes), name]
        world = subprocess.Popen(command, stdin=subprocess.PIPE)
        try:
            while len(list(folder.glob("node-*.sock"))) < num_nodes:
                assert world.poll() is None
                time.sleep(0.1)
            yield Slurm(folder)
        finally:
            assert world.stdin is not None
            world.stdin.close()  # ends it, and with it every process on the nodes
            world.wait()


def srun(words: list[str]) -> int:
    at = next(index for index, word in enumerate(words) if not word.startswith("-"))
    options = dict(word.removeprefix("--").partition("=")[::2] for word in words[:at])
    names = [name for name in node_names() if name != options.get("exclude")]
    assert len(names) == int(options["nodes"]) == int(options["ntasks"])
    tasks = {}
    for rank, name in enumerate(names):
        env = {**os.environ, STEP: "0", "SLURM_PROCID": str(rank)}
        tasks[name] = ask(name, {"argv": words[at:], "env": env, "cwd": str(Path.cwd())})

    def kill(number: int, _: object) -> None:
        print("srun: forcing job termination", file=sys.stderr, flush=True)
        for name in tasks:
            ask(name, {"signal": signal.SIGKILL, "step": True}).recv(16)

    signal.signal(signal.SIGTERM, kill)
    return max(int(task.recv(16)) for task in tasks.values())


def scontrol(words: list[str]) -> int:
    if words[0] == "show":
        print("\n".join(node_names()))
    else:
        (SHARED / "requeued").write_text(" ".join(words))
    return 0


if __name__ == "__main__":
    verb, *words = sys.argv[1:]
    if verb == "world":
        world(int(words[0]), words[1])
    elif verb == "node":
        node(int(words[0]))
    else:
        sys.exit({"srun": srun, "scontrol": scontrol}[verb](words))
