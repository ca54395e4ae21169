"""Nodes whose decoders are not those of the job, or that do not share its output."""

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from tests.end_to_end.jobs import (
    RUNTIME,
    assert_complete,
    codes_of,
    codes_without_ray,
    files,
    run,
    wait_until,
    write_job,
    write_videos,
)
from tests.ray_head import BIN, free_ports

OTHER_AV = """
import importlib, sys
del sys.modules["av"]
sys.path.remove({folder!r})
importlib.import_module("av").__version__ = "17.9.0"
sys.path.insert(0, {folder!r})
"""
"""A module ``av`` that is the real one of another version, whatever the package's metadata say."""


def node_with(folder: Path, package: str) -> dict[str, Any]:
    """Settings of a node on which a folder comes first in Python's path."""
    (folder / "av").mkdir(parents=True)
    (folder / "av" / "__init__.py").write_text(package.format(folder=str(folder)))
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    return {"num_cpus": 1, "env_vars": {"PYTHONPATH": path}}


@contextlib.contextmanager
def node_apart(cluster: Cluster, folder: Path) -> Iterator[None]:
    """Add a node for which a folder is another one than for the rest."""
    log, (agent,) = folder.with_suffix(".log"), free_ports(1)
    mount = f"mount -t tmpfs tmpfs {folder} && exec {BIN}/ray start --address={cluster.address}"
    options = f"--num-cpus=1 --disable-usage-stats --dashboard-agent-listen-port={agent} --block"
    command = ["unshare", "--mount", "sh", "-c", f"{mount} {options}"]
    with log.open("wb") as output:
        node = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        wait_until(lambda: "Ray runtime started" in log.read_text() or node.poll() is not None)
        yield
    finally:
        node.terminate()
        node.wait(60)


@pytest.mark.ray
def test_a_job_names_nodes_with_other_decoders_or_outputs_and_uses_those_that_fit(
    tmp_path: Path,
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    write_videos(tmp_path / "videos", 6)
    job = write_job(
        tmp_path / "job.yaml",
        files(tmp_path / "videos"),
        str(tmp_path / "shared/out"),
        runtime={**RUNTIME, "decode": {"min_actors": 2}},
    )
    other = node_with(tmp_path / "other", OTHER_AV)
    broken = node_with(tmp_path / "broken", "raise ImportError('libavcodec.so.60 is missing')")
    cluster = Cluster(initialize_head=True, head_node_args={**other, "include_dashboard": False})
    with contextlib.ExitStack() as stack:
        stack.callback(cluster.shutdown)
        cluster.add_node(**broken)
        stack.enter_context(node_apart(cluster, shared))
        code, printed = run(job, cluster.address)
        assert code == 2, printed
        assert "no node of the cluster can decode for this job" in printed
        assert "av 17.9 instead of 18." in printed
        assert "libavcodec.so.60 is missing" in printed
        assert re.search(rf"does not see the driver's output.*{shared}/out/manifest", printed)
        cluster.add_node(num_cpus=2)
        code, printed = run(job, cluster.address)
    assert code == 0, printed
    # Whether Ray placed an actor on a node that does not fit before the job was done is chance.
    assert_complete(job)
    assert codes_of(job) == codes_without_ray(job)
    rule = json.loads((tmp_path / "shared/out/job.json").read_text())["settings"]["decode"]
    assert rule["backends"] == ["pyav"]
    assert rule["libraries"].keys() >= {"av", "av libavcodec", "av libswscale"}
