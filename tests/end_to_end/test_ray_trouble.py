"""Trouble of Ray itself, made for real: it is named with advice, and costs no clip."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE, STDOUT

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

from tests.end_to_end.jobs import (
    RUNTIME,
    assert_complete,
    codes_of,
    codes_without_ray,
    files,
    rejections_of,
    start,
    stop,
    wait_until,
    write_job,
    write_videos,
)

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


IMPATIENT = """
import sys
from tokpipe.cli import main
from tokpipe.runtime import shell
from tokpipe.runtime.dispatch import fleet
fleet.INPUTS_WITHIN_S = shell.INPUTS_WITHIN_S = 5.0
sys.exit(main(["run", sys.argv[1]]))
"""


def test_pixels_whose_spilled_copies_are_gone_are_made_again(tmp_path: Path) -> None:
    """As after a cleaner of /tmp: Ray waits for them without an end."""
    write_videos(tmp_path / "videos", 4, num_frames=9)
    job = write_job(
        tmp_path / "job.yaml",
        files(tmp_path / "videos"),
        str(tmp_path / "out"),
        frames={"size": [1024, 1024]},
        runtime={
            **RUNTIME,
            "encode": {"max_actors": 1, "resources": {"late": 1}},
            "start_timeout_s": 15,
        },
    )
    (spilled := tmp_path / "spilled").mkdir()
    head = {"num_cpus": 2, "include_dashboard": False, "object_spilling_directory": str(spilled)}
    head["object_store_memory"] = STORE_BYTES
    cluster = Cluster(initialize_head=True, head_node_args=head)
    command = [sys.executable, "-c", IMPATIENT, str(job)]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    driver = subprocess.Popen(command, env=environment, text=True, stdout=PIPE, stderr=STDOUT)
    try:
        wait_until(lambda: any(spilled.glob("*/*")) or driver.poll() is not None)
        time.sleep(2)  # until the rest is spilled too
        for one in spilled.glob("*/*"):
            one.unlink()
        cluster.add_node(num_cpus=1, resources={"late": 1}, object_store_memory=STORE_BYTES)
        printed, _ = driver.communicate(timeout=300)
    finally:
        driver.kill()
        cluster.shutdown()
    assert driver.returncode == 0, printed
    assert "its inputs do not come from Ray's object store" in printed
    assert_complete(job)
    assert codes_of(job) == codes_without_ray(job)
    assert not rejections_of(job)
