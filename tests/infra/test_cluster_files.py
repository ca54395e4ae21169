"""The cluster files are valid, and the jobs they start exist."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
SCHEMA = Path(__file__).parent / "rayjob_schema.json"
JOBS = re.compile(r"\bjobs/\w+\.yaml")


def load(name: str) -> Any:
    return yaml.safe_load((INFRA / name).read_text())


def objects() -> dict[str, Any]:
    """What infra/rayjob.yaml creates, by kind."""
    found = yaml.safe_load_all((INFRA / "rayjob.yaml").read_text())
    return {one["kind"]: one for one in found}


@pytest.mark.parametrize("name", ["rayjob.yaml", "aws-spot.yaml", "slurm.sh"])
def test_the_jobs_they_start_exist(name: str) -> None:
    found = JOBS.findall((INFRA / name).read_text())
    assert found
    assert all((ROOT / job).exists() for job in found)


def test_the_cluster_file_is_valid_for_ray() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = load("aws-spot.yaml")
    validate_config(prepare_config(config))
    assert "RAY_AUTH_MODE=token" in str(config["docker"]["run_options"])
    nodes = config["available_node_types"]
    for name, node in nodes.items():
        market = node["node_config"].get("InstanceMarketOptions", {}).get("MarketType")
        assert (market == "spot") == (name != config["head_node_type"])
        assert node["node_config"]["IamInstanceProfile"]
    assert nodes["encode"]["resources"]["GPU"] >= 1
    assert "GPU" not in nodes["decode"]["resources"]


def test_the_rayjob_has_its_head_on_demand_and_its_workers_on_spot() -> None:
    job = objects()["RayJob"]
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


def test_the_rayjob_has_the_fields_of_the_published_resource() -> None:
    jsonschema.Draft7Validator(json.loads(SCHEMA.read_text())).validate(objects()["RayJob"])


def test_the_rayjob_has_a_token_and_its_nodes_have_shared_memory_and_what_they_refer_to() -> None:
    created = objects()
    config, account = created["ConfigMap"], created["ServiceAccount"]
    needed = set(re.findall(r"\$\{(\w+)", (ROOT / "jobs/webvid.yaml").read_text()))
    assert set(config["data"]) == needed
    cluster = created["RayJob"]["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["serviceAccountName"] == account["metadata"]["name"]
        (container,), (volume,) = pod["containers"], pod["volumes"]
        assert container["envFrom"] == [{"configMapRef": {"name": config["metadata"]["name"]}}]
        assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/dev/shm"}]
        assert volume["emptyDir"]["medium"] == "Memory"
        shared, memory = volume["emptyDir"]["sizeLimit"], container["resources"]["limits"]["memory"]
        # Ray's object store is 30 % of the memory.
        assert 0.3 <= int(shared.removesuffix("Gi")) / int(memory.removesuffix("Gi")) <= 0.4


def test_commands_in_the_image_run_where_it_has_its_jobs() -> None:
    image = (INFRA / "Dockerfile").read_text()
    assert {"gcc", "libc6-dev"} <= set(image.split()), "Triton builds its launcher at first use"
    folder = re.search(r"^WORKDIR (\S+)", image, re.MULTILINE)
    assert folder is not None
    entrypoint = objects()["RayJob"]["spec"]["entrypoint"]
    assert entrypoint == f"python -m tokpipe.run {folder[1]}/jobs/webvid.yaml"
    # `ray up` puts the token below HOME of the image, which it looks up in its environment.
    (mount,) = load("aws-spot.yaml")["file_mounts"]
    home = re.search(r"^ENV HOME=(\S+)", image, re.MULTILINE)
    assert home is not None
    assert mount == f"{home[1]}/.ray/auth_token"
    # Ray's command runner, KubeRay's probes
    assert {"openssh-client", "rsync", "wget"} <= set(image.split())
    assert ",aws]" in image


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
