"""A run that starts a Ray of its own: what it opens to others, and how it ends with its group."""

import http.client
import importlib
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path

import pytest
import ray
from packaging.version import Version
from ray._private.services import psutil  # type: ignore[attr-defined]

from tests.end_to_end.jobs import (
    await_line,
    files,
    finish,
    num_commits,
    slow_tokenizer,
    start_in_group,
    wait_until,
    write_job,
    write_videos,
)
from tests.end_to_end.processes import command_of, descendants_of
from tests.pages import REPOSITORY

WITHOUT_TOKEN = (
    "NodeInfoGcsService/GetAllNodeInfo",  # the head
    "NodeManagerService/GetNodeStats",  # the raylet
    "ObjectManagerService/Push",
    "CoreWorkerService/PushTask",  # workers and the driver: this would run code
    "ReporterService/GetTraceback",  # the agent
)
ON_OTHER_INTERFACES: dict[str, str] = {}
"""Processes that may listen on all interfaces, with the reason. At present there are none."""


@dataclass(frozen=True)
class LocalRun:
    """A job that ran on a Ray of its own until its process group got SIGTERM."""

    job: Path
    code: int
    printed: str
    processes: list[int]
    tcp: dict[int, tuple[str, str]]
    """Command and address of what listens, by port."""
    answers: dict[int, str]
    """What each port answers to a client without a token."""
    unix: list[Path]
    modes: dict[Path, int]
    """Folders directly in RAY_TMPDIR, with their modes while the job ran."""
    home: list[str]
    imported: list[str]
    """Modules that were imported from the current folder, an output with modules in it."""


@pytest.fixture(scope="module")
def local_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRun]:
    folder = tmp_path_factory.mktemp("local")
    home = folder / "home"
    home.mkdir()
    write_videos(folder / "videos", 12)
    job = write_job(
        folder / "job.yaml",
        files(folder / "videos"),
        str(folder / "out"),
        tokenizer=slow_tokenizer(until=folder / "hurry", pause_s=0.2),
        output={"uri": str(folder / "out"), "shard_bytes": 10**9},
    )
    # A short path, because it begins the names of Ray's sockets.
    of_ray = Path(tempfile.mkdtemp(prefix="r-", dir="/tmp"))
    of_ray.chmod(0o777)  # as /tmp
    variables = {"PYTHONUNBUFFERED": "1", "RAY_TMPDIR": str(of_ray), "HOME": str(home)}
    variables["PYTHONPATH"] = f"{REPOSITORY}{os.pathsep}"  # also the current folder
    stranger = folder / "stranger"
    plant_modules(stranger, imported := folder / "imported")
    with pytest.MonkeyPatch.context() as environment:
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
            environment.delenv(name, raising=False)
        driver = start_in_group(job, cwd=stranger, **variables)
    seen = await_line(driver, lambda line: bool(re.search(r"encode [1-9]", line)))
    processes = descendants_of(driver.pid)
    try:
        tcp, unix = _open_sockets([driver.pid, *processes])
        answers = {port: _answer(address, port) for port, (_, address) in tcp.items()}
        modes = {one: one.lstat().st_mode & 0o777 for one in of_ray.iterdir()}
    finally:
        for pid in processes:
            os.kill(pid, signal.SIGTERM)
        os.killpg(driver.pid, signal.SIGTERM)
        code, printed = finish(driver)
    found = [str(path) for path in home.rglob("*")]
    names = [path.name for path in imported.iterdir()]
    yield LocalRun(job, code, seen + printed, processes, tcp, answers, unix, modes, found, names)
    shutil.rmtree(of_ray, ignore_errors=True)


def plant_modules(output: Path, imported: Path) -> None:
    """Write modules that Ray, its workers and tokpipe import, which leave their names."""
    output.mkdir()
    imported.mkdir()
    (output / "job.json").touch()
    for name in ("fsspec", "pyarrow", "numpy", "yaml", "aiohttp", "torch"):
        text = f"import pathlib\npathlib.Path({str(imported / name)!r}).touch()\n"
        (output / f"{name}.py").write_text(text)


def _open_sockets(pids: list[int]) -> tuple[dict[int, tuple[str, str]], list[Path]]:
    tcp, unix = {}, []
    for pid in pids:
        for one in psutil.Process(pid).net_connections(kind="all"):
            if isinstance(one.laddr, str):
                unix += [Path(one.laddr)] if one.laddr else []
            elif one.status in (psutil.CONN_LISTEN, psutil.CONN_NONE):  # the latter is UDP
                tcp[one.laddr.port] = (command_of(pid), one.laddr.ip)
    return tcp, unix


def _answer(address: str, port: int) -> str:
    """What listens at a port answers without a token to HTTP, or else to gRPC."""
    host = "127.0.0.1" if ":" in address else address  # it listens to both versions of IP
    connection = http.client.HTTPConnection(host, port, timeout=60)
    try:
        connection.request("GET", "/")
        return f"HTTP {connection.getresponse().status}"
    except http.client.BadStatusLine:
        grpc = importlib.import_module("grpc")
    finally:
        connection.close()
    answers = set()
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        for method in WITHOUT_TOKEN:
            try:
                channel.unary_unary(f"/ray.rpc.{method}")(b"", timeout=60)
                answers.add("OK")
            except grpc.RpcError as error:
                answers.add(error.code().name)
    return " ".join(sorted(answers - {"UNIMPLEMENTED"}))  # of other servers


@pytest.mark.ray
def test_a_local_run_listens_on_the_loopback_interface_alone(local_run: LocalRun) -> None:
    assert len(local_run.tcp) >= 6, "the head, the raylet, agents, workers, the driver"
    exposed = []
    for command, address in local_run.tcp.values():
        found = ip_address(address)
        mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
        if not (mapped or found).is_loopback:
            exposed.append(f"{address}: {command[:100]}")
    assert [one for one in exposed if not any(name in one for name in ON_OTHER_INTERFACES)] == []


@pytest.mark.skipif(Version(ray.__version__) < Version("2.59"), reason="no token by default")
@pytest.mark.ray
def test_every_port_of_a_local_run_rejects_a_client_without_its_token(
    local_run: LocalRun,
) -> None:
    answers = {
        local_run.tcp[port][0][:200].strip(): answer
        for port, answer in local_run.answers.items()
        if answer not in ("UNAUTHENTICATED", "HTTP 401")
    }
    assert answers == {}
    assert not local_run.home, "a token in a file is one that others may read"


@pytest.mark.ray
def test_other_users_can_open_neither_the_folder_of_a_local_ray_nor_its_sockets(
    local_run: LocalRun,
) -> None:
    assert set(local_run.modes.values()) == {0o700}
    assert local_run.unix, "the raylet and the object store have sockets"
    outside = [
        path for path in local_run.unix if not any(one in path.parents for one in local_run.modes)
    ]
    assert not outside


@pytest.mark.ray
def test_sigterm_to_the_group_lets_the_driver_commit(local_run: LocalRun) -> None:
    """Also to each process of a local Ray, as systemd and Slurm send it. None of them remains."""
    printed = local_run.printed
    assert local_run.code == 128 + signal.SIGTERM, printed
    assert "run the same command again to continue" in printed
    assert "Traceback" not in printed
    assert "\x1b" not in printed
    assert num_commits(local_run.job), printed
    wait_until(lambda: not any(map(command_of, local_run.processes)))


@pytest.mark.ray
def test_no_process_of_a_local_run_imports_from_an_output_that_it_starts_in(
    local_run: LocalRun,
) -> None:
    assert local_run.imported == []
