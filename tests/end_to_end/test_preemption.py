"""A cluster that announces the loss of a node, as of a spot instance, and gets new ones later."""

import subprocess
import sys
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from tests.end_to_end.jobs import (
    assert_complete,
    await_line,
    codes_of,
    codes_without_ray,
    files,
    finish,
    num_commits,
    peak_actors,
    slow_tokenizer,
    start,
    wait_until,
    write_job,
    write_videos,
)


def drain(cluster: Cluster, node_id: str, seconds: int) -> None:
    """Announce the end of a node, as an autoscaler does when a spot instance is reclaimed."""
    subprocess.run(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "drain-node"),
            *("--address", cluster.address, "--node-id", node_id),
            *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot reclaimed"),
            *("--deadline-remaining-seconds", str(seconds)),
        ],
        check=True,
        capture_output=True,
    )


@pytest.mark.ray
def test_a_node_is_lost_only_after_its_codes_are_committed_and_new_nodes_are_used(
    tmp_path: Path,
) -> None:
    write_videos(tmp_path / "videos", 80)
    # Shards so large that without the notice nothing would be written before the end.
    job = write_job(
        tmp_path / "job.yaml",
        files(tmp_path / "videos"),
        "",
        output={"uri": str(tmp_path / "out")},
        tokenizer=slow_tokenizer(until=tmp_path / "hurry", pause_s=1.5),
        runtime={"progress_interval_s": 0.5, "clips_per_lease": 2},
    )
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        driver = start(job, cluster.address)
        await_line(driver, lambda line: peak_actors(line, "encode") > 1 and "encode 0 " not in line)
        assert num_commits(job) == 0
        drain(cluster, nodes[0].node_id, 1200)
        wait_until(lambda: num_commits(job) > 0 or driver.poll() is not None)
        assert driver.poll() is None, "the notice alone must make it commit"
        cluster.remove_node(nodes[0], allow_graceful=False)
        cluster.add_node(num_cpus=3)
        await_line(driver, lambda line: peak_actors(line, "encode") > 3)
        (tmp_path / "hurry").touch()
        code, printed = finish(driver)
    finally:
        cluster.shutdown()
    assert code == 0, printed
    assert_complete(job)
    assert codes_of(job) == codes_without_ray(job)
