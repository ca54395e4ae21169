"""Connecting to Ray: the cluster that the driver was submitted to, or a new local one."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray._private.state
from ray.exceptions import RayError

from tokpipe.errors import RuntimeFault


@contextmanager
def connected(cluster: str) -> Iterator[None]:
    """Be connected to Ray within the block.

    ``auto`` is the cluster named by ``RAY_ADDRESS``, which Ray sets for submitted jobs, else a new
    local one; ``local`` is always a new one; anything else is an address.

    Raises:
        RuntimeFault: there is no cluster at that address.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if cluster == "local" or (cluster == "auto" and not os.environ.get("RAY_ADDRESS")):
        # Ray reads these from the environment of the process that starts it.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        options.update(address="local", include_dashboard=False)
    elif cluster != "auto":
        options.update(address=cluster)
    try:
        ray.init(**options)
    except (KeyboardInterrupt, SystemExit):
        ray.shutdown()
        raise
    except (ConnectionError, RayError, RuntimeError, ValueError) as error:
        raise RuntimeFault(
            f"runtime.cluster={cluster}: no connection to Ray: {error}. Nothing was started. "
            "Check that the cluster runs and that the address is right."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def draining_nodes() -> frozenset[str]:
    """Ids of the nodes that are being drained: by ``ray drain-node``, by an autoscaler, or because
    a cloud is about to reclaim a spot instance. Ray has no public function for this.
    """
    return frozenset(ray._private.state.state.get_draining_nodes())


def has_gpu() -> bool:
    """Whether any live node of the cluster has a GPU."""
    return any(node["Alive"] and node["Resources"].get("GPU", 0) for node in ray.nodes())
