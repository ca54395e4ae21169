"""A cluster that loses a node in mid-job and gains another."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from tests.end_to_end.jobs import (
    assert_complete,
    codes_of,
    files,
    finish,
    num_entries,
    peak_actors,
    run_well,
    start,
    wait_until,
    write_job,
    write_videos,
)


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_job_goes_on_with_fewer_nodes_and_uses_new_ones(tmp_path: Path, ray_address: str) -> None:
    write_videos(tmp_path / "videos", 40)
    # Frames large enough that there is work left when actors on a new node have started.
    source, frames = files(tmp_path / "videos"), {"size": [112, 112]}
    undisturbed = write_job(tmp_path / "a.yaml", source, str(tmp_path / "a"), frames=frames)
    job = write_job(tmp_path / "b.yaml", source, str(tmp_path / "b"), frames=frames)
    run_well(undisturbed, ray_address)

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        driver = start(job, cluster.address)
        wait_until(lambda: num_entries(job) >= 2 or driver.poll() is not None)
        # Three CPUs for one decoder and two encoders; now two, then one, then two again.
        cluster.remove_node(nodes[0], allow_graceful=False)
        before = num_entries(job)
        wait_until(lambda: num_entries(job) >= before + 2 or driver.poll() is not None, 180)
        cluster.remove_node(nodes[1], allow_graceful=False)
        before = num_entries(job)
        wait_until(lambda: num_entries(job) >= before + 2 or driver.poll() is not None, 180)
        assert driver.poll() is None, f"done before the new node came: {finish(driver)}"
        cluster.add_node(num_cpus=3)
        code, printed = finish(driver, timeout_s=300)
    finally:
        cluster.shutdown()
    assert code == 0, printed
    assert_complete(job)
    assert codes_of(job) == codes_of(undisturbed)
    assert peak_actors(printed, "encode") >= 3, printed
