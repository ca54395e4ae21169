"""Services that pages speak of: a Ray cluster, and a store with a dataset in it."""

import csv
import io
import socket
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import yaml

from tests.docs.scene import Scene
from tests.end_to_end.jobs import wait_until, write_video
from tests.s3_server import S3Server, filesystem_of
from tokpipe.config import parse_job
from tokpipe.models.tokenizers import build_tokenizer

BUCKETS = ("my-bucket", "bucket")
"""The buckets of examples."""
SMALL: dict[str, dict[str, Any]] = {
    "frames": {"buckets": [[32, 32], [32, 64]]},
    "encode": {"device": "cpu", "dtype": "float32"},
    "runtime": {"encode": {"cpus": 1, "max_actors": 1}},
}
"""What is changed in ``jobs/webvid.yaml``, so that CPUs can run it in seconds."""
NETWORK = {"ch": 32, "ch_mult": [1, 1, 1, 1]}


def webvid(scene: Scene, server: S3Server) -> None:
    """The dataset of ``jobs/webvid.yaml``, with two videos, and no output."""
    path = scene.clone / "jobs/webvid.yaml"
    job = yaml.safe_load(path.read_text())
    for section, changes in SMALL.items():
        job[section].update(changes)
    job["tokenizer"]["encoder"].update(NETWORK)
    path.write_text(yaml.safe_dump(job, sort_keys=False))

    fs = filesystem_of(server)
    for bucket in BUCKETS:
        if fs.exists(bucket):
            fs.rm(bucket, recursive=True)
        fs.mkdir(bucket)
    rows = io.StringIO()
    table = csv.writer(rows)
    table.writerow(["videoid", "name", "page_dir", "duration", "contentUrl"])
    with tempfile.TemporaryDirectory() as folder:
        for number in (7, 8):
            table.writerow([number, f"video {number}", "000001_000050", "PT2S", "https://h/7.mp4"])
            video = Path(folder) / "video.mp4"
            write_video(video, seed=number)
            fs.put_file(str(video), f"my-bucket/webvid/videos/000001_000050/{number}.mp4")
    fs.pipe_file("my-bucket/webvid/results_10M_train.csv", rows.getvalue().encode())
    names = dict.fromkeys(
        ("WEBVID_TABLE", "WEBVID_VIDEOS", "TOKENIZER_WEIGHTS", "OUTPUT"), "s3://b"
    )
    config = parse_job(path.read_text(), name=path.name, root=scene.clone, environ=names)
    weights = build_tokenizer(config.tokenizer, None).state_dict()
    fs.pipe_file("my-bucket/tokenizers/encoder_3d.safetensors", safetensors.torch.save(weights))


@contextmanager
def running_head(scene: Scene, server: S3Server, *, token: bool) -> Iterator[str]:
    """``ray start --head`` in the clone, on free ports; yields ``host:port`` of its dashboard.

    With ``token`` it asks for the one in ``~/.ray``.
    """
    environment = scene.environment(installed=True) | server.environment()
    if token:
        scene.bash("ray get-auth-token --generate")
        environment["RAY_AUTH_MODE"] = "token"
    dashboard, agent, client = _free_ports(3)
    log = scene.folder / "head.log"
    with log.open("w") as output:
        head = subprocess.Popen(
            [
                *(scene.scripts / "ray", "start", "--head", "--block", "--port=0", "--num-cpus=2"),
                f"--dashboard-port={dashboard}",
                f"--dashboard-agent-listen-port={agent}",
                f"--ray-client-server-port={client}",
            ],
            cwd=scene.clone,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: head.poll() is not None or _is_ready(dashboard), every_s=0.5)
        assert head.poll() is None, log.read_text()
        yield f"127.0.0.1:{dashboard}"
    finally:
        head.terminate()
        head.wait(timeout=300)


def _free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _is_ready(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/api/version", timeout=5).close()
    except urllib.error.HTTPError as answer:
        answer.close()
        return answer.code == 401  # it asks for the token
    except OSError:
        return False
    return True
