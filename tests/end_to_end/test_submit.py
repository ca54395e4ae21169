"""`tokpipe submit`, to a cluster that shares neither folder nor home nor environment with the user.

One head with a token serves most tests. The other has none, but the project and its variables.
"""

import contextlib
import csv
import io
import json
import os
import re
import secrets
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from tests.end_to_end.jobs import (
    assert_complete,
    codes_of,
    codes_without_ray,
    files,
    num_commits,
    wait_until,
    write_job,
    write_video,
    write_videos,
)
from tests.pages import REPOSITORY
from tests.ray_head import BIN, Head, free_ports, plain_environment, running_head
from tests.s3_server import S3Server, fresh_bucket
from tokpipe.cli import main
from tokpipe.config import load_job
from tokpipe.config.job import StoreOptions
from tokpipe.models.tokenizers import build_tokenizer
from tokpipe.storage import Store

pytestmark = [pytest.mark.ray, pytest.mark.s3]

CANARIES = {
    "AWS_SECRET_ACCESS_KEY": "canary/aws+secret+1234567890",
    "AWS_SESSION_TOKEN": "canary-session-1234567890",
    "HF_TOKEN": "canary-hf-1234567890",
    "DATABASE_URL": "postgres://user:canary-db-1234567890@host/db",
    "SHORT_API_KEY": "canary1",
    "UNRELATED": "canary-of-an-unrelated-variable",
}
"""What the submitter's environment holds besides what jobs name."""


@dataclass
class User:
    """Someone with a project and a token, who submits to a cluster."""

    project: Path
    head: Head
    environment: dict[str, str]
    printed: list[str] = field(default_factory=list)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "tokpipe.cli", "submit", *arguments]

    def submit(self, *arguments: str, **variables: str) -> tuple[int, str]:
        """Run `tokpipe submit` to its end; return the exit code and what it printed."""
        return self.run(*self.command("--address", self.head.url, *arguments), **variables)

    def run(self, *command: str, **variables: str) -> tuple[int, str]:
        done = subprocess.run(
            command,
            cwd=self.project,
            env={**self.environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
            check=False,
        )
        self.printed.append(done.stdout)
        return done.returncode, done.stdout

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs of the cluster, as its API returns them."""
        script = (
            "import json, sys; from ray.job_submission import JobSubmissionClient as C\n"
            "print(json.dumps([one.dict() for one in C(sys.argv[1]).list_jobs()]))"
        )
        code, printed = self.run(sys.executable, "-c", script, self.head.url)
        assert code == 0, printed
        found: list[dict[str, Any]] = json.loads(printed.splitlines()[-1])
        return found

    def log_of(self, submission_id: str) -> str:
        """The lines of a driver, from the head's disk."""
        (path,) = self.head.folder.glob(f"session_2*/logs/job-driver-{submission_id}.log")
        return path.read_text()


@pytest.fixture(scope="module")
def user(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    place = tmp_path_factory.mktemp("remote")
    for name in ("project/jobs", "home", "head", "head-home"):
        (place / name).mkdir(parents=True)
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    theirs = {"HOME": str(place / "head-home"), "PYTHONPATH": str(REPOSITORY)}
    mine = {"HOME": str(place / "home"), "PYTHONPATH": str(REPOSITORY)}
    with running_head(place / "head", {**s3_server.environment(), **theirs, **token}) as head:
        environment = {**plain_environment(), **CANARIES, **mine, **token}
        yield User(place / "project", head, environment)


def webvid_job(path: Path) -> Path:
    """The shipped job, for CPUs and with a small network; everything else as it is."""
    text = (REPOSITORY / "jobs/webvid.yaml").read_text()
    for shipped, small in (
        ("device: cuda", "device: cpu"),
        ("dtype: bfloat16", "dtype: float32"),
        ("ch: 128", "ch: 32"),
        ("ch_mult: [1, 2, 4, 4]", "ch_mult: [1, 1, 1, 1]"),
        ("num_res_blocks: 2", "num_res_blocks: 1"),
        ("[[256, 256], [192, 336], [336, 192]]", "[[32, 32], [32, 48]]"),
        ("encode: {cpus: 1, gpus: 1, max_actors: 1024}", "encode: {cpus: 1, max_actors: 1}"),
    ):
        assert shipped in text
        text = text.replace(shipped, small)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def webvid(
    user: User, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """The variables of jobs/webvid.yaml, and what they name on S3: three videos and weights."""
    bucket = f"s3://{fresh_bucket(s3_server)}"
    variables = {
        "WEBVID_TABLE": f"{bucket}/results.csv",
        "WEBVID_VIDEOS": f"{bucket}/videos",
        "TOKENIZER_WEIGHTS": f"{bucket}/encoder.safetensors",
        "OUTPUT": f"{bucket}/codes",
    }
    job = load_job(webvid_job(user.project / "jobs/webvid.yaml"), variables)
    tokenizer = build_tokenizer(
        job.tokenizer.model_copy(update={"weights": None}), None, with_decoder=False
    )
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["videoid", "name", "page_dir", "duration", "contentUrl"])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment().items():
            patch.setenv(name, value)
        store = Store(bucket, StoreOptions())
        for path in write_videos(tmp_path_factory.mktemp("videos"), 3):
            store.put(f"videos/page1/{path.name}", path.read_bytes())
            writer.writerow([path.stem, "a caption", "page1", "PT2S", ""])
        store.put("results.csv", table.getvalue().encode())
        store.put("encoder.safetensors", safetensors.torch.save(tokenizer.state_dict()))
    return variables


def test_the_shipped_job_runs_from_s3_to_s3_with_the_submitters_variables(
    user: User, webvid: dict[str, str], s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    (user.project / ".env").write_text("PASSWORD=canary-of-a-file")
    (user.project / "notes.txt").write_text("canary-of-a-file")
    code, printed = user.submit("jobs/webvid.yaml", **webvid)
    assert code == 0, printed
    assert "3 clips" in printed
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    assert_complete(load_job(user.project / "jobs/webvid.yaml", webvid))

    # Ray's own command takes the same job if the project and the variables are passed.
    ray = [str(BIN / "ray"), "job", "submit", "--address", user.head.url]
    run = ["--", "python", "-m", "tokpipe.run", "jobs/webvid.yaml"]
    code, printed = user.run(*ray, *run, **webvid)
    assert code == 1
    assert "jobs/webvid.yaml: cannot be read as a job file: No such file" in printed
    assert (lacks := "`ray job submit` sends no files or variables: see --working-dir") in printed
    for name in (".env", "notes.txt"):
        (user.project / name).unlink()
    code, printed = user.run(*ray, "--working-dir", ".", *run, **webvid)
    assert code == 1
    assert "environment variable WEBVID_TABLE is not set" in printed
    assert lacks in printed
    passed = json.dumps({"env_vars": webvid})
    code, printed = user.run(*ray, "--working-dir", ".", "--runtime-env-json", passed, *run)
    assert code == 0, printed
    assert "3 clips" in printed


def test_the_reference_command_works_where_the_head_has_project_and_variables(
    user: User,
    webvid: dict[str, str],
    s3_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As printed in the job file's header, on a cluster without tokens."""
    again = {**webvid, "OUTPUT": f"{webvid['OUTPUT']}-again"}
    environment = {
        "HOME": user.environment["HOME"],
        "PYTHONPATH": str(REPOSITORY),
        "RAY_AUTH_MODE": "disabled",
        **s3_server.environment(),
    }
    with running_head(user.project, {**environment, **again}) as head:
        alone = User(user.project, head, {**plain_environment(), **environment})
        reference = ["ray", "job", "submit", "--", "python", "-m", "tokpipe.run"]
        code, printed = alone.run(
            str(BIN / "ray"), *reference[1:], "jobs/webvid.yaml", RAY_API_SERVER_ADDRESS=head.url
        )
        assert code == 0, printed
        assert "3 clips" in printed
        # The variables of the submitter count, not those of the head.
        code, printed = alone.submit("jobs/webvid.yaml", **webvid)
        assert code == 0, printed
        assert f"{webvid['OUTPUT']}\n" in printed
        code, printed = alone.submit("jobs/webvid.yaml", "--dry-run", **webvid)
        assert code == 0, printed
        for name, value in webvid.items():
            monkeypatch.setenv(name, value)
        for address in (head.address, head.url.removeprefix("http://")):
            monkeypatch.setenv("RAY_ADDRESS", address)
            assert main(["submit", str(user.project / "jobs/webvid.yaml"), "--stop"]) == 0
            printed = capsys.readouterr().out
            assert f"nothing to stop: no job for {webvid['OUTPUT']} is running" in printed
            assert head.url.rpartition(":")[2] in printed


def test_exit_codes_of_the_driver_are_those_of_submit(user: User) -> None:
    videos = user.project / "some"
    write_videos(videos, 2)
    (videos / "clip002.mp4").write_bytes(b"not a video")
    write_job(user.project / "jobs/four.yaml", files(videos), "out/four")
    code, printed = user.submit("jobs/four.yaml")
    assert code == 4, printed
    # Relative paths start at the submitter's project, and the output is there.
    assert (user.project / "out/four/job.json").exists()
    write_video(videos / "clip002.mp4", seed=2)
    code, printed = user.submit("jobs/four.yaml", "--retry-rejected", "--reason", "not_a_video")
    assert code == 0, printed
    assert_complete(user.project / "jobs/four.yaml")

    write_job(user.project / "jobs/two.yaml", files(user.project / "none"), "out/two")
    code, printed = user.submit("jobs/two.yaml")
    assert code == 2, printed
    assert "submitted" in printed, "the driver must have found out"
    code, printed = user.submit("jobs/missing.yaml")
    assert code == 2
    assert "submitted" not in printed


SLOW = """
import time
from pathlib import Path
from torch import nn

class Slow(nn.Module):
    def __init__(self, until):
        super().__init__()
        self.until = Path(until)

    def encode(self, x):
        for _ in range(20 * len(x)):
            time.sleep(0 if self.until.exists() else 0.1)
        return (x.mean(1)[:, :, ::8, ::8] * 15.99).long()
"""


@pytest.fixture
def slow_job(user: User) -> Path:
    """A job that takes a while, whose tokenizer is a module that only the submitter has."""
    write_videos(user.project / "many", 12)
    (user.project / "only_here.py").write_text(SLOW)
    return write_job(
        user.project / "jobs/slow.yaml",
        files(user.project / "many"),
        "out/slow",
        output={"uri": "out/slow", "shard_bytes": 1024, "shard_max_age_s": 2},
        tokenizer={
            "kind": "custom",
            "implementation": "only_here:Slow",
            "arguments": {"until": str(user.project / "hurry")},
            "declares": {
                "temporal_stride": 1,
                "spatial_stride": 8,
                "codebook_size": 16,
                "layout": "BCTHW",
                "value_range": [0.0, 1.0],
                "why_not_streamable": "it is a test",
            },
        },
    )


def test_a_job_outlives_its_terminal_is_followed_again_stopped_and_resumed(
    user: User, slow_job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = "jobs/slow.yaml"
    terminal, end = os.openpty()
    first = subprocess.Popen(
        user.command(job, "--address", user.head.url),
        cwd=user.project,
        env=user.environment,
        preexec_fn=lambda: os.login_tty(end),
    )
    os.close(end)
    wait_until(lambda: num_commits(slow_job) > 0)
    os.close(terminal)
    assert first.wait(300) == -signal.SIGHUP
    commits = num_commits(slow_job)
    wait_until(lambda: num_commits(slow_job) > commits)

    follower = subprocess.Popen(
        user.command(job, "--address", user.head.url, "--retry-rejected"),
        cwd=user.project,
        env=user.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell that starts the tests in the background makes them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert follower.stdout is not None
    seen = follower.stdout.readline()
    while "of ~" not in seen and "of 36 clips" not in seen and follower.poll() is None:
        seen += follower.stdout.readline()
    follower.send_signal(signal.SIGINT)
    seen += follower.communicate(timeout=300)[0]
    assert follower.returncode == 130, seen
    assert f"already works on {user.project}/out/slow: following it" in seen
    assert "with the settings it was submitted with" in seen
    assert f"continues on {user.head.url}: run the same command to follow it" in seen

    code, printed = user.submit(job, "--stop")
    assert code == 0, printed
    assert "run the same command again to continue" in printed, "the driver must end by itself"
    commits = num_commits(slow_job)
    code, printed = user.submit(job, "--detach")
    second = re.search(r"tokpipe-\w+-2", printed)
    assert second is not None, printed
    wait_until(lambda: num_commits(slow_job) > commits)
    code, printed = user.run(
        *(str(BIN / "ray"), "job", "stop", "--address", user.head.url, second[0])
    )
    assert code == 0, printed
    assert "run the same command again to continue" in user.log_of(second[0])
    assert main(["audit", str(user.project / "out/slow"), "--partial"]) == 0

    code, printed = user.submit(job, "--detach")
    assert code == 0, printed
    (user.project / "hurry").touch()
    with unreliable_way_to(user.head) as address:
        code, printed = user.run(*user.command(job, "--address", address))
    assert code == 0, printed
    name = re.search(r"(tokpipe-\w+-3) already works on", printed)
    assert name is not None, printed
    log = user.log_of(name[1])
    assert log.splitlines()[-8:] == printed.splitlines()[-8:]
    assert len(set(printed.splitlines())) == len(printed.splitlines()), "no line comes twice"
    assert_complete(slow_job)
    monkeypatch.syspath_prepend(user.project)
    assert codes_of(slow_job) == codes_without_ray(slow_job)


@contextlib.contextmanager
def unreliable_way_to(head: Head) -> Iterator[str]:
    """A port that leads to the head's dashboard, but breaks every other answer with lines."""
    port = int(head.url.rpartition(":")[2])

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection(("127.0.0.1", port)) as server:
                request = self.request.recv(65536)
                server.sendall(request)
                if b"/logs" in request:
                    asked.append(request)
                    if len(asked) % 2:
                        self.request.sendall(server.recv(300))
                        return
                up = threading.Thread(target=pass_on, args=(self.request, server))
                up.start()
                pass_on(server, self.request)
                up.join()

    def pass_on(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    asked: list[bytes] = []
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{proxy.server_address[1]}"
        proxy.shutdown()
    assert len(asked) > 1


@pytest.fixture(scope="module")
def web_server() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "variables",
    [{"RAY_AUTH_TOKEN": "wrong" * 8}, {"RAY_AUTH_TOKEN": ""}, {"RAY_AUTH_MODE": "disabled"}],
    ids=["wrong", "missing", "off"],
)
def test_a_wrong_token_is_reported_as_such(user: User, variables: Mapping[str, str]) -> None:
    write_job(user.project / "jobs/any.yaml", files(user.project), "out/any")
    code, printed = user.submit("jobs/any.yaml", **variables)
    assert code == 7, printed
    assert f"{user.head.url}: authentication failed: the token is missing or wrong" in printed
    assert "Traceback" not in printed
    driver = ["-m", "tokpipe.run", "jobs/any.yaml"]
    code, printed = user.run(
        sys.executable, *driver, **{"RAY_ADDRESS": user.head.address, **variables}
    )
    assert code == 7, printed
    assert "runtime.cluster=auto: authentication failed" in printed
    assert "gcs_client" not in printed, "a line of Ray's C++"


def test_addresses_without_a_cluster_are_reported_as_such(
    user: User, web_server: str, ray_address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    job = write_job(user.project / "jobs/any.yaml", files(user.project), "out/any")
    (closed,) = free_ports(1)
    for address, expected, said in (
        ("ray://127.0.0.1:10001", 2, "is an address of Ray Client"),
        (f"http://127.0.0.1:{closed}", 7, "no Ray cluster answers"),
        (f"127.0.0.1:{closed}", 7, "Connection refused"),
        (web_server, 7, "no Ray cluster answers"),
        (f"http://{user.head.address}", 7, "no Ray cluster answers"),
        ("http://no-such-host.invalid:8265", 7, "no Ray cluster answers"),
        (ray_address, 7, "no Ray cluster answers"),  # without a dashboard
    ):
        code = main(["submit", str(job), "--address", address])
        printed = capsys.readouterr().err
        assert code == expected, printed
        assert said in printed, printed
        assert "Traceback" not in printed
        assert "http://HEAD:8265" in printed


def test_secrets_are_neither_sent_nor_printed_nor_stored(
    user: User, webvid: dict[str, str], s3_server: S3Server
) -> None:
    """Runs last: it looks at everything that the other tests have left."""
    text = (user.project / "jobs/webvid.yaml").read_text()
    (user.project / "jobs/leak.yaml").write_text(text.replace("${OUTPUT}", "${SHORT_API_KEY}"))
    for arguments in (
        ["jobs/leak.yaml"],
        ["jobs/webvid.yaml", "--env", "AWS_SECRET_ACCESS_KEY"],
        ["jobs/webvid.yaml", "--env", "DATABASE_URL"],
        ["jobs/webvid.yaml", "--env", "COPY"],
    ):
        code, printed = user.submit(*arguments, **webvid, COPY=CANARIES["HF_TOKEN"])
        assert code == 2, printed
        assert "Nothing was sent" in printed
    code, printed = user.submit("jobs/webvid.yaml", "--env", "REGION", **webvid, REGION="here")
    assert code == 0, printed

    jobs = user.jobs()
    assert jobs[0]["submission_id"]
    environments = [one["runtime_env"].get("env_vars", {}) for one in jobs]
    assert {"RAY_JOB_STOP_WAIT_TIME_S": "150", "REGION": "here"} in environments
    found = [*user.printed, json.dumps(jobs)]
    folders = [user.head.folder, s3_server.data / "data", user.project / "out"]
    kept = {}
    for path in (path for folder in folders for path in folder.rglob("*")):
        with suppress(OSError):  # a running Ray replaces some of its files
            if path.is_file():
                kept[path] = path.read_bytes()
    assert any(path.name.startswith("job-driver-tokpipe-") for path in kept)
    for name, canary in CANARIES.items():
        secret = "canary-db-1234567890" if name == "DATABASE_URL" else canary
        assert not [one for one in found if secret in one], name
        assert not [path for path, data in kept.items() if secret.encode() in data], name
    assert not [path for path, data in kept.items() if b"canary-of-a-file" in data]
