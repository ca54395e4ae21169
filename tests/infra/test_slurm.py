"""infra/slurm.sh forms one cluster of a job's nodes, and stops, resumes and fails as it promises."""

import json
import signal
import socket
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
    """Ids of the nodes on which an encoder or decoder came up."""
    lines = map(json.loads, log.read_text().splitlines()) if log.exists() else iter(())
    return {line["node"] for line in lines if line["event"] == "actor_up"}


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
        tokenizer=slow_tokenizer(Path("/mnt/go"), pause_s=600),
        runtime={"log_path": "/mnt/log", "clips_per_lease": 1, "progress_interval_s": 2},
    )
    # The shell that called sbatch used another cluster.
    environment = {"SLURM_CPUS_PER_TASK": "2", "RAY_ADDRESS": "10.77.0.9:6379"}
    job = slurm.sbatch("job.yaml", 3, **environment)
    wait_for(lambda: len(busy_nodes(folder / "log")) == 3, job)
    slurm.signal_batch(signal.SIGUSR1)
    (folder / "go").touch()
    assert ended(job) == 128 + signal.SIGTERM
    assert (folder / "requeued").read_text() == "requeue 42"
    first = open_output(str(folder / "out")).num_clips
    assert first < 24
    assert ended(slurm.sbatch("job.yaml", 3, **environment)) == 0
    assert open_output(str(folder / "out")).num_clips == 24
