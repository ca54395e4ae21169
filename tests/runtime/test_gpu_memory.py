"""The start of a job on a node that Ray takes to have a GPU, of which only the name is known."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from rich.console import Console

from tests.end_to_end.jobs import files, write_job, write_video
from tests.stages.test_fit import PUBLISHED
from tokpipe.config import JobConfig, load_job
from tokpipe.config.job import PoolConfig, RuntimeConfig
from tokpipe.errors import ConfigError, PlanMismatch
from tokpipe.formats import job_record
from tokpipe.formats.job_record import JobRecord
from tokpipe.runtime import cluster as cluster_module
from tokpipe.runtime.assemble import JobOutput, Run
from tokpipe.runtime.cluster import connected, gpu_bytes
from tokpipe.stages.fit import GB

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def l4() -> Iterator[None]:
    """Connected to a cluster of one node with an L4, as Ray sees it."""
    head = {"num_cpus": 2, "num_gpus": 1, "resources": {"accelerator_type:L4": 1}}
    cluster = Cluster(initialize_head=True, head_node_args={**head, "include_dashboard": False})
    try:
        with connected(cluster.address):
            yield
    finally:
        cluster.shutdown()


def job_of(folder: Path, size: int = 256, **encode: Any) -> JobConfig:
    (folder / "videos").mkdir(exist_ok=True)
    if not (folder / "videos/0.mp4").exists():
        write_video(folder / "videos/0.mp4")
    source, out = files(folder / "videos"), str(folder / "out")
    settings: dict[str, Any] = {
        "tokenizer": PUBLISHED,
        "frames": {"size": [size, size]},
        "sampling": {"max_clip_frames": 17},
        "chunking": {"chunk_frames": 17},
        "encode": {"device": "auto", "dtype": "bfloat16", **encode},
    }
    return load_job(write_job(folder / "job.yaml", source, out, **settings))


def started(job: JobConfig) -> tuple[JobRecord, str]:
    """The record of a job's output, started or found, and what was said."""
    said = io.StringIO()
    console, output = Console(file=said, width=1000), JobOutput(job)
    record = output.start(console)
    batch_chunks = record.settings["encode"]["batch_chunks"]
    run = Run(output, console)
    limits = run.dispatcher.pools.limits
    assert limits.batch_chunks == run.encode().encode_config.batch_rows == batch_chunks
    return record, said.getvalue()


@pytest.mark.usefixtures("l4")
def test_auto_is_decided_once_recorded_and_resumed(tmp_path: Path) -> None:
    record, said = started(job_of(tmp_path, 512))
    chosen = "encode.batch_chunks: 2; chunks of 17x512x512 in bfloat16 take 12.0 of 24.0 GB (L4)"
    assert chosen in said
    assert record.settings["encode"] == {"device": "cuda", "dtype": "bfloat16", "batch_chunks": 2}
    assert record.job["encode"]["batch_chunks"] == 2
    for same in ({}, {"batch_chunks": 2}, {"device": "cuda"}):
        again, said = started(job_of(tmp_path, 512, **same))
        assert again.writer == record.writer
        assert "batch_chunks" not in said, "it is not decided again"
    with pytest.raises(PlanMismatch, match=r"encode\.batch_chunks: 2 -> 4"):
        started(job_of(tmp_path, 512, batch_chunks=4))


@pytest.mark.usefixtures("l4")
@pytest.mark.parametrize(
    ("size", "encode", "remedy"),
    [(1536, {}, "chunks of 17x1000x1000"),
     (512, {"batch_chunks": 8}, "encode.batch_chunks: 2")],
)  # fmt: skip
def test_what_cannot_fit_is_rejected_before_anything_is_written(
    size: int, encode: dict[str, Any], remedy: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="so nothing was started") as rejected:
        started(job_of(tmp_path, size, **encode))
    assert f"Use {remedy}, or only GPUs with more memory" in str(rejected.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("l4")
def test_a_card_that_answers_is_believed_and_no_start_waits_for_one_that_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Holder:  # pickled by value, because workers cannot import tests
        """An actor of another job."""

    config = RuntimeConfig()
    monkeypatch.setattr(cluster_module, "CARDS_WITHIN_S", 15.0)
    assert gpu_bytes(config) == {"L4": 24 * GB}, "torch sees no GPU here"
    there = ray.remote(num_cpus=0, num_gpus=0.01)(lambda: 22 * GB)
    monkeypatch.setattr(cluster_module, "_CARD_BYTES", there)
    assert gpu_bytes(config) == {"L4": 22 * GB}
    monkeypatch.setattr(cluster_module, "CARDS_WITHIN_S", 0.5)
    holder: Any = ray.remote(num_cpus=0, num_gpus=1)(Holder).remote()
    ray.get(holder.__ray_ready__.remote(), timeout=30)  # the query has left it a whole GPU
    assert gpu_bytes(config) == {"L4": 24 * GB}
    ray.kill(holder)
    elsewhere = RuntimeConfig(encode=PoolConfig(accelerator_type="H100"))
    assert gpu_bytes(elsewhere) == {"H100": 80 * GB}, "an autoscaler may add it"
    assert gpu_bytes(RuntimeConfig(encode=PoolConfig(labels={"no": "node"}))) == {}


def test_a_forged_number_is_not_taken(tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "golden/output_0_1_0/job.json"
    record = JobRecord.from_json("job.json", golden.read_bytes())
    job = job_of(tmp_path)
    for rows in (0, "8", None, [2]):
        settings = {**record.settings, "encode": {"device": "cuda", "batch_chunks": rows}}
        forged = record.model_copy(update={"settings": settings})
        assert forged.settled(job).encode.batch_chunks == "auto"
        assert forged.settled(job).encode.device == "cuda"
    assert job_record.JOB_RECORD_FORMAT == 1
