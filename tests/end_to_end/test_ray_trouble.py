"""Trouble of Ray itself, made for real: it is named with advice, and costs no clip."""

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

from tests.end_to_end.jobs import files, rejections_of, start, stop, write_job, write_videos

pytestmark = [pytest.mark.ray, pytest.mark.slow]
STORE_BYTES = 80 * 2**20  # the least that Ray allows


@pytest.fixture
def full_disk() -> Iterator[str]:
    """A cluster whose object store is full, and whose disk counts as full when it is in use."""
    head = {
        "num_cpus": 2,
        "include_dashboard": False,
        "object_store_memory": STORE_BYTES,
        "_system_config": {"local_fs_capacity_threshold": 1e-6},
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    ray.init(address=cluster.address, log_to_driver=False)
    # Views: Ray may spill an object that is only referenced, in spite of the full disk.
    held = [ray.get(ray.put(np.zeros(2**20, np.uint8))) for _ in range(STORE_BYTES // 2**20 - 8)]
    yield cluster.address
    del held
    ray.shutdown()
    cluster.shutdown()


def test_a_full_disk_of_rays_is_named_and_rejects_no_clip(tmp_path: Path, full_disk: str) -> None:
    write_videos(tmp_path / "videos", 4)
    job = write_job(
        tmp_path / "job.yaml",
        files(tmp_path / "videos"),
        str(tmp_path / "out"),
        frames={"size": [1024, 1024]},
    )
    driver = start(job, full_disk)
    assert driver.stdout is not None
    printed = ""
    while printed.count("the disk that Ray spills objects to is full: ") < 3:
        line = driver.stdout.readline()
        assert line, f"the driver ended: {printed}"
        printed += line
    code, rest = stop(driver, signal.SIGTERM)
    printed += rest
    assert code == 128 + signal.SIGTERM, printed
    assert "warning: decode: a lease of" in printed
    assert "Traceback" not in printed
    assert "\x1b" not in printed
    assert not rejections_of(job)
