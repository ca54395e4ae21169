"""Connecting to Ray: the cluster that the driver was submitted to, or a new local one."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray._private.services
import ray._private.state
from ray.exceptions import RayError

from tokpipe.errors import RuntimeFault
from tokpipe.telemetry.logs import log_event


@contextmanager
def connected(cluster: str) -> Iterator[list[str]]:
    """Be connected to Ray within the block.

    ``auto`` is the cluster named by ``RAY_ADDRESS``, which Ray sets for submitted jobs, else a new
    local one; ``local`` is always a new one; anything else is an address.

    Yields the addresses of clusters with a node on this machine beside which ``auto`` has started
    a local one.

    Raises:
        RuntimeFault: there is no cluster at that address.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    unused: list[str] = []
    if cluster == "local" or (cluster == "auto" and not os.environ.get("RAY_ADDRESS")):
        if cluster == "auto":  # running processes: the file that Ray keeps may be of a dead cluster
            unused = sorted(ray._private.services.find_gcs_addresses())
        # Ray reads these from the environment of the process that starts it.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        options.update(address="local", include_dashboard=False)
    elif cluster != "auto":
        options.update(address=cluster)
    try:
        ray.init(**options)
    except (ConnectionError, RayError, RuntimeError, ValueError) as error:
        raise RuntimeFault(
            f"runtime.cluster={cluster}: no connection to Ray: {error}. Nothing was started. "
            "Check that the cluster runs and that the address is right."
        ) from error
    try:
        yield unused
    finally:
        ray.shutdown()


def warn_of_unused(addresses: list[str]) -> None:
    """Say that clusters on this machine do not work on a job that started a local Ray."""
    if addresses:
        one = addresses[0] if len(addresses) == 1 else "ADDRESS"
        log_event(
            "cluster_unused",
            f"Ray is already running on this machine ({', '.join(addresses)}), but RAY_ADDRESS is "
            "not set. This job started another Ray, on this machine alone: the nodes of a running "
            "cluster stay idle, and CPUs here are used twice. To use a running cluster, stop this "
            f"job, then run it with RAY_ADDRESS={one} or use `tokpipe submit`. If a local Ray is "
            "intended, set runtime.cluster to local.",
            level=logging.WARNING,
            addresses=addresses,
        )


def draining_nodes() -> frozenset[str]:
    """Ids of the nodes that are being drained: by ``ray drain-node``, by an autoscaler, or because
    a cloud is about to reclaim a spot instance. Ray has no public function for this.
    """
    return frozenset(ray._private.state.state.get_draining_nodes())


def has_gpu() -> bool:
    """Whether any live node of the cluster has a GPU."""
    return any(node["Alive"] and node["Resources"].get("GPU", 0) for node in ray.nodes())
