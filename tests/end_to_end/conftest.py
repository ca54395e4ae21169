"""One Ray cluster for all tests that need no particular one: drivers come and go much faster."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ray.cluster_utils import Cluster


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """Address of a one-node cluster with two CPUs."""
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
    )
    yield cluster.address
    cluster.shutdown()
