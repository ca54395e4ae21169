"""The cluster files are valid, and the jobs they start exist."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
RUNS = re.compile(r"python -m tokpipe\.run (\S+)")


def load(name: str) -> Any:
    return yaml.safe_load((INFRA / name).read_text())


@pytest.mark.parametrize("name", ["rayjob.yaml", "aws-spot.yaml", "slurm.sh"])
def test_the_jobs_they_start_exist(name: str) -> None:
    found = RUNS.findall((INFRA / name).read_text())
    assert found
    for job in found:
        assert job == '"$job"' or (ROOT / job.rstrip("'")).exists()


def test_the_cluster_file_is_valid_for_ray() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = load("aws-spot.yaml")
    validate_config(prepare_config(config))
    nodes = config["available_node_types"]
    for name, node in nodes.items():
        market = node["node_config"].get("InstanceMarketOptions", {}).get("MarketType")
        assert (market == "spot") == (name != config["head_node_type"])
        assert node["node_config"]["IamInstanceProfile"]
    assert nodes["encode"]["resources"]["GPU"] >= 1
    assert "GPU" not in nodes["decode"]["resources"]


def test_the_rayjob_has_its_head_on_demand_and_its_workers_on_spot() -> None:
    job = load("rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"]
    cluster = spec["rayClusterSpec"]
    head = cluster["headGroupSpec"]["template"]["spec"]
    workers = {one["groupName"]: one["template"]["spec"] for one in cluster["workerGroupSpecs"]}
    assert "nodeSelector" not in head
    for worker in workers.values():
        assert "spot" in worker["nodeSelector"].values()
        assert worker["terminationGracePeriodSeconds"] >= 60
    for pod in (head, *workers.values()):
        (container,) = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
    assert "nvidia.com/gpu" in workers["encode"]["containers"][0]["resources"]["limits"]
    pinned = (ROOT / "requirements.txt").read_text()
    assert f"ray=={cluster['rayVersion']}" in pinned


def test_the_policy_grants_what_a_store_uses_and_no_more() -> None:
    policy = json.loads((INFRA / "iam-policy.json").read_text())
    granted: dict[str, set[str]] = {}
    for statement in policy["Statement"]:
        for resource in statement["Resource"]:
            assert resource != "*"
            granted.setdefault(resource, set()).update(statement["Action"])
    assert granted["arn:aws:s3:::SOURCE_BUCKET/SOURCE_PREFIX/*"] == {"s3:GetObject"}
    assert granted["arn:aws:s3:::OUTPUT_BUCKET/OUTPUT_PREFIX/*"] == {
        *("s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload")
    }


def test_the_image_copies_files_that_exist() -> None:
    for line in (INFRA / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY"):
            *sources, _ = line.split()[1:]
            for source in sources:
                assert list(ROOT.glob(source)), source
