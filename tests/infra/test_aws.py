"""The head of the AWS cluster may do what Ray's node provider does, and no more.

Ray's own provider runs with boto3; only the answers of EC2 are made up.
"""

import fnmatch
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
import yaml

INFRA = Path(__file__).parents[2] / "infra"
CONFIG: dict[str, Any] = yaml.safe_load((INFRA / "aws-spot.yaml").read_text())
NODES: dict[str, dict[str, Any]] = CONFIG["available_node_types"]


def statements(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((INFRA / name).read_text())["Statement"]
    return found


class Ec2:
    """Answers calls of EC2, and keeps them."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.instances: dict[str, dict[str, Any]] = {}

    def answer(self, model: Any, params: dict[str, Any], **_: Any) -> tuple[Any, dict[str, Any]]:
        body = params["body"]
        self.calls.append((model.name, body))
        answers: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "RunInstances": self._run,
            "DescribeInstances": lambda body: {
                "Reservations": [{"Instances": list(self.instances.values())}]
            },
            "DescribeInstanceTypes": lambda body: {
                "InstanceTypes": [
                    {
                        "InstanceType": node["node_config"]["InstanceType"],
                        "VCpuInfo": {"DefaultVCpus": 8},
                        "MemoryInfo": {"SizeInMiB": 32768},
                    }
                    for node in NODES.values()
                ]
            },
        }
        found = answers[model.name](body) if model.name in answers else {}
        return SimpleNamespace(status_code=200), found

    def _run(self, body: dict[str, Any]) -> dict[str, Any]:
        name = f"i-{len(self.instances)}"
        tags = [
            {"Key": body[f"TagSpecification.1.Tag.{n}.Key"], "Value": value}
            for n in range(1, 20)
            if (value := body.get(f"TagSpecification.1.Tag.{n}.Value"))
        ]
        self.instances[name] = {
            "InstanceId": name,
            "State": {"Name": "running"},
            "Tags": tags,
            "PrivateIpAddress": "10.0.0.1",
        }
        return {"Instances": [self.instances[name]]}


@pytest.fixture
def ec2(monkeypatch: pytest.MonkeyPatch) -> Ec2:
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "none")
    session = boto3.session.Session(region_name="us-east-1")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", session)
    ec2 = Ec2()
    session.events.register("before-call.ec2", ec2.answer)
    return ec2


def test_the_head_may_do_what_ray_does_there(ec2: Ec2) -> None:
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    provider = AWSNodeProvider(CONFIG["provider"], CONFIG["cluster_name"])
    worker = {
        **NODES["encode"]["node_config"],
        "SubnetIds": ["subnet-1"],
        "ImageId": "ami-1",
        "KeyName": "ray",
    }
    tags = {"ray-node-type": "worker", "ray-launch-config": "1", "ray-user-node-type": "encode"}
    provider.create_node(worker, tags, 1)
    (node,) = provider.non_terminated_nodes({})
    provider.set_node_tags(node, {"ray-node-status": "up-to-date"})
    assert provider.is_running(node)
    provider.terminate_nodes([node])
    provider.fillout_available_node_types_resources(CONFIG)

    head = statements("iam-head-policy.json")
    granted = {action for one in head for action in one["Action"]}
    called = {f"ec2:{name}" for name, _ in ec2.calls}
    assert {"ec2:RunInstances", "ec2:TerminateInstances", "ec2:CreateTags"} <= called
    assert called | {"iam:PassRole"} == granted
    # It may pass on the role of the workers that it starts, and change nodes of this cluster only.
    (role,) = (one["Resource"] for one in head if one["Action"] == ["iam:PassRole"])
    assert role == [f"arn:aws:iam::ACCOUNT_ID:role/{worker['IamInstanceProfile']['Name']}"]
    conditions = [one["Condition"] for one in head if "ec2:TerminateInstances" in one["Action"]]
    tag = {"aws:ResourceTag/ray-cluster-name": CONFIG["cluster_name"]}
    assert conditions == [{"StringEquals": tag}]
    started = next(body for name, body in ec2.calls if name == "RunInstances")
    assert CONFIG["cluster_name"] in started.values()
    assert "ray-cluster-name" in started.values()


def test_workers_may_not_start_nodes() -> None:
    actions = [action for one in statements("iam-policy.json") for action in one["Action"]]
    assert all(fnmatch.fnmatch(action, "s3:*") for action in actions)
    profiles = {name: node["node_config"]["IamInstanceProfile"] for name, node in NODES.items()}
    assert profiles.pop("head") == {"Name": "tokpipe-head"}
    assert set(map(str, profiles.values())) == {str({"Name": "tokpipe"})}
