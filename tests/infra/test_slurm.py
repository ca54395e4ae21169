"""infra/slurm.sh makes one cluster of a job's nodes; it stops, continues and fails as it says."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.end_to_end.jobs import slow_tokenizer, write_job, write_videos
from tests.infra.slurm_nodes import ROOT, Slurm, running_slurm
from tokpipe.reader import open_output

SCRIPT = ROOT / "infra/slurm.sh"


def wait_for(condition: Callable[[], object], running: socket.socket) -> None:
    running.settimeout(0.5)
    for _ in range(1200):
        if condition():
            return
        try:
            status = running.recv(16)
        except TimeoutError:
            continue
        raise AssertionError(f"the job ended with {status!r}")
    raise AssertionError("waited for ten minutes")


def ended(running: socket.socket) -> int:
    running.settimeout(600)
    return int(running.recv(16))


def busy_nodes(log: Path) -> set[str]:
    """Ids of the nodes on which an actor of any stage came up."""
    events = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return {event["node"] for event in events if event["event"] == "actor_up"}


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with running_slurm(3) as slurm:
        yield slurm


@pytest.mark.ray
def test_every_node_of_a_job_works_and_a_job_that_runs_out_of_time_continues(slurm: Slurm) -> None:
    folder = slurm.folder
    write_videos(folder / "videos", 24)
    write_job(
        folder / "job.yaml",
        {"kind": "files", "uri": "/mnt/videos/*.mp4"},
        "/mnt/out",
        tokenizer=slow_tokenizer(Path("/mnt/go"), pause_s=10),
        runtime={"log_path": "/mnt/log", "clips_per_lease": 1, "progress_interval_s": 2},
    )
    # The shell that called sbatch used another cluster.
    environment = {"SLURM_CPUS_PER_TASK": "2", "RAY_ADDRESS": "10.77.0.9:6379"}
    with slurm.sbatch("job.yaml", 3, **environment) as job:
        wait_for(lambda: len(busy_nodes(folder / "log")) == 3, job)
        slurm.signal_batch(signal.SIGUSR1)
        (folder / "go").touch()
        assert ended(job) == 128 + signal.SIGTERM
    assert (folder / "requeued").read_text() == "requeue 42"
    first = open_output(str(folder / "out")).num_clips
    assert first < 72
    with slurm.sbatch("job.yaml", 1, **environment) as job:
        assert ended(job) == 0
    assert open_output(str(folder / "out")).num_clips == 72


FAKES = {
    "scontrol": '[ "$1" = show ] && echo node-1 || echo "$@" >> "$OUT/scontrol"',
    "ray": '[ -z "$BROKEN" ] || { echo "port in use"; exit 1; }; env > "$OUT/env"\n'
    'exec "$REAL" -c "import socket,sys,time; s = socket.create_server((\'127.0.0.1\', '
    'int(sys.argv[1]))); time.sleep(600)" 20042',
    "python": 'case "$*" in\n'
    '*"import ray"*) [ -z "$NO_RAY" ] && echo 127.0.0.1 ;;\n'
    "*secrets*) echo token-of-this-job ;;\n"
    '*) echo "$RAY_ADDRESS $*" > "$OUT/driver"; trap "exit 143" TERM\n'
    '   [ -n "$ENDS" ] && exit "$ENDS"; touch "$OUT/up"; while :; do sleep 0.05; done ;;\nesac',
}
"""Stand-ins for what the script calls: a Ray that listens, a driver that ends with $ENDS."""


def start(folder: Path, **environment: str) -> subprocess.Popen[bytes]:
    (folder / "bin").mkdir(exist_ok=True)
    for name, text in FAKES.items():
        (folder / "bin" / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / "bin" / name).chmod(0o755)
    (folder / "job.yaml").touch()
    env = {
        "PATH": f"{folder}/bin:/usr/bin:/bin",
        "OUT": str(folder),
        "REAL": sys.executable,
        "SLURM_JOB_NODELIST": "node-1",
        "SLURM_JOB_ID": "42",
        "SLURM_JOB_NUM_NODES": "1",
        **dict.fromkeys(("BROKEN", "NO_RAY", "ENDS"), ""),
        **environment,
    }
    with (folder / "stderr").open("w") as stderr:
        return subprocess.Popen(
            ["bash", str(SCRIPT), "job.yaml"], env=env, cwd=folder, stderr=stderr
        )


@pytest.mark.parametrize("code", [0, 2, 4])
def test_a_job_ends_with_the_exit_code_of_its_driver(code: int, tmp_path: Path) -> None:
    assert start(tmp_path, ENDS=str(code)).wait(300) == code
    assert (tmp_path / "driver").read_text() == "127.0.0.1:20042 -m tokpipe.run job.yaml\n"


@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGTERM, False), (signal.SIGUSR1, True)])
def test_only_a_job_that_runs_out_of_time_is_queued_again(
    number: int, requeued: bool, tmp_path: Path
) -> None:
    job = start(tmp_path)
    while not (tmp_path / "up").exists():
        assert job.poll() is None
        time.sleep(0.05)
    job.send_signal(number)
    assert job.wait(300) == 128 + signal.SIGTERM
    asked = (tmp_path / "scontrol").read_text() if (tmp_path / "scontrol").exists() else ""
    assert asked == ("requeue 42\n" if requeued else "")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"NO_RAY": "1"}, "PATH has no Python with tokpipe and ray"),
        ({"BROKEN": "1"}, "port in use\nslurm.sh: Ray did not start on node-1"),
    ],
)
def test_a_job_that_cannot_start_says_why(
    environment: dict[str, str], message: str, tmp_path: Path
) -> None:
    assert start(tmp_path, **environment).wait(300) == 2
    assert message in (tmp_path / "stderr").read_text()


def test_each_job_has_a_token_and_a_folder_and_not_the_address_of_another_cluster(
    tmp_path: Path,
) -> None:
    assert start(tmp_path, ENDS="0", RAY_ADDRESS="10.0.0.1:6379").wait(300) == 0
    env = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    assert (env["RAY_AUTH_MODE"], env["RAY_AUTH_TOKEN"]) == ("token", "token-of-this-job")
    assert env["RAY_TMPDIR"].startswith("/tmp/tokpipe-")
    assert not Path(env["RAY_TMPDIR"]).exists()
    assert "RAY_ADDRESS" not in env
    chosen = {"RAY_AUTH_TOKEN": "mine", "RAY_TMPDIR": str(tmp_path / "scratch")}
    assert start(tmp_path, ENDS="0", **chosen).wait(300) == 0
    env = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    assert chosen.items() <= env.items()
