"""Nodes whose decoders are not those of the job."""

import json
import os
import sys
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
    write_job,
    write_videos,
)

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


@pytest.mark.ray
def test_a_job_names_nodes_with_other_decoders_and_uses_those_that_fit(tmp_path: Path) -> None:
    write_videos(tmp_path / "videos", 6)
    job = write_job(
        tmp_path / "job.yaml",
        files(tmp_path / "videos"),
        str(tmp_path / "out"),
        runtime={**RUNTIME, "decode": {"min_actors": 2}},
    )
    other = node_with(tmp_path / "other", OTHER_AV)
    broken = node_with(tmp_path / "broken", "raise ImportError('libavcodec.so.60 is missing')")
    cluster = Cluster(initialize_head=True, head_node_args={**other, "include_dashboard": False})
    try:
        cluster.add_node(**broken)
        code, printed = run(job, cluster.address)
        assert code == 2, printed
        assert "no node of the cluster can decode for this job" in printed
        assert "av 17.9 instead of 18." in printed
        assert "libavcodec.so.60 is missing" in printed
        cluster.add_node(num_cpus=2)
        code, printed = run(job, cluster.address)
    finally:
        cluster.shutdown()
    assert code == 0, printed
    assert "not used to decode" in printed
    assert_complete(job)
    assert codes_of(job) == codes_without_ray(job)
    rule = json.loads((tmp_path / "out/job.json").read_text())["settings"]["decode"]
    assert rule["backends"] == ["pyav"]
    assert rule["libraries"].keys() >= {"av", "av libavcodec", "av libswscale"}
