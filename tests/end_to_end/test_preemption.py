"""A node that the cluster says will be taken away, as a spot instance is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from tests.end_to_end.jobs import (
    assert_complete,
    codes_of,
    files,
    finish,
    num_entries,
    run_well,
    start,
    wait_until,
    write_job,
    write_videos,
)


def drain(cluster: Cluster, node_id: str, seconds: int) -> None:
    """Give the cluster the notice that its autoscaler gives when a spot instance is reclaimed."""
    subprocess.run(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "drain-node"),
            *("--address", cluster.address, "--node-id", node_id),
            *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot reclaimed"),
            *("--deadline-remaining-seconds", str(seconds)),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_what_a_reclaimed_node_holds_is_committed_before_it_goes(
    tmp_path: Path, ray_address: str
) -> None:
    write_videos(tmp_path / "videos", 30)
    # Nothing would be written before the end, were it not for the notice.
    output = {"uri": str(tmp_path / "b")}
    source, frames = files(tmp_path / "videos"), {"size": [96, 96]}
    undisturbed = write_job(tmp_path / "a.yaml", source, str(tmp_path / "a"), frames=frames)
    job = write_job(tmp_path / "b.yaml", source, "", frames=frames, output=output)
    run_well(undisturbed, ray_address)

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        driver = start(job, cluster.address)
        assert driver.stdout is not None
        for line in driver.stdout:  # progress, every other second
            if re.search(r"encode \d\d", line):
                break
        assert num_entries(job) == 0
        drain(cluster, nodes[0].node_id, 30)
        wait_until(lambda: num_entries(job) > 0 or driver.poll() is not None, 60)
        assert driver.poll() is None, "the notice alone must make it commit"
        cluster.remove_node(nodes[0], allow_graceful=False)
        code, printed = finish(driver, timeout_s=200)
    finally:
        cluster.shutdown()
    assert code == 0, printed
    assert_complete(job)
    assert codes_of(job) == codes_of(undisturbed)
