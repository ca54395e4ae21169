"""Connecting to Ray, a running cluster or a new local one, and what its nodes have."""

import atexit
import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from math import inf
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray
import ray._private.ray_constants
import ray._private.services
import ray._private.state
import ray.exceptions
from ray._private.services import psutil  # type: ignore[attr-defined]
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.exceptions import RayError
from ray.job_config import JobConfig

from tokpipe.config.job import PoolConfig, RuntimeConfig
from tokpipe.errors import ConfigError, HeadLost, RuntimeFault
from tokpipe.runtime.dispatch.protocol import Capacity, NodeId, Room
from tokpipe.runtime.trouble import one_line
from tokpipe.stages.fit import CARDS, GB, card_bytes
from tokpipe.telemetry.logs import log_event
from tokpipe.types import STAGES

CONNECT_TIMEOUT_S = 10.0
CARDS_WITHIN_S = 60.0  # A worker that imports torch answers within a few seconds
_CARD_BYTES = ray.remote(num_cpus=0, num_gpus=0.01, max_retries=0)(card_bytes)
OF_LOCAL_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ports that would show metrics, with the names of data sets, to whoever asks, without a token.
    # The latter two cannot be turned off; Ray logs that it could not open them, and continues.
    "RAY_enable_metrics_collection": "0",
    "AUTOSCALER_METRIC_PORT": "-1",
    "DASHBOARD_METRIC_PORT": "-1",
}
"""Variables of processes of a local Ray, unless the caller sets them."""
_OF_TOKEN = ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE")  # Ray sets the latter
AuthenticationError: type[RayError] = getattr(ray.exceptions, "AuthenticationError", RayError)
"""Older versions of Ray have no tokens."""


@contextmanager
def connected(cluster: str) -> Iterator[tuple[list[str], bool]]:
    """Be connected to Ray within the block.

    ``auto`` is the cluster named by ``RAY_ADDRESS``, which Ray sets for submitted jobs, else a new
    local one. Yields addresses of clusters on this machine beside which that was started, and
    whether it was started here: then it never gets other nodes. Raises ConfigError for an address
    of Ray Client, and RuntimeFault if no cluster is there, or it rejects the token.
    """
    named = os.environ.get("RAY_ADDRESS") if cluster == "auto" else cluster
    address, where = named or "local", f"runtime.cluster={cluster}"
    # Ray would print the traceback of a failed lease too, once for each of its two results.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    options["job_config"] = _ImportPath()
    if address == "local":  # Ray reads these from the environment of the process that starts it
        os.environ.update(OF_LOCAL_RAY | dict(os.environ))
        options["include_dashboard"] = False
    # Running processes: the file that Ray keeps may be of a dead cluster.
    unused = [] if named else sorted(ray._private.services.find_gcs_addresses())
    folder = ""
    with ExitStack() as at_end:
        try:
            if address == "local":
                # Ray lets everyone write to the folders that it makes, and so to its sockets.
                place = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
                place = place if len(place) <= 26 else "/tmp"  # sockets: up to 107, Ray adds 81
                Path(place).mkdir(parents=True, exist_ok=True)
                folder = tempfile.mkdtemp(prefix="ray-", dir=place)
                options["_temp_dir"] = f"{folder}/ray"
                before = {name: os.environ[name] for name in _OF_TOKEN if os.environ.get(name)}
                at_end.callback(_set_token, before)  # other clusters must not get that of this one
                # Ray would make a token too, but keep it in a file that other users may read.
                _set_token({"RAY_AUTH_TOKEN": secrets.token_hex(32), **before})
            elif address != "auto":
                _check_cluster(address, where)
            ray._private.services.ConsolePopen = _Service  # type: ignore[misc, assignment]
            ray._private.node.Node = _LocalNode  # type: ignore[misc]
            # Ray would print the deaths of workers too, in colour even into files.
            ray._private.worker.listen_error_messages = lambda *_: None
            # Off, as on macOS, a new Ray uses the loopback address, whatever _node_ip_address says.
            ray._private.ray_constants.ENABLE_RAY_CLUSTER = address != "local"
            # After `uv run` it would send the current folder, and workers would import from it.
            ray._private.ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = False
            ray.init(address=address, **options)
        except AuthenticationError as error:
            raise authentication_fault(where) from error
        except Exception as error:  # a plain one if a node does not start in 30 s, when it is busy
            found = f"{where}: no connection to Ray: {one_line(str(error))}. Nothing was started"
            do = "Check that the cluster runs and that the address is right."
            raise RuntimeFault(f"{found}. {do}") from error
        finally:
            ray._private.ray_constants.ENABLE_RAY_CLUSTER = True
            ray._private.services.ConsolePopen = _Service.__base__  # type: ignore[misc, assignment]
            ray._private.node.Node = _LocalNode.__base__  # type: ignore[misc, assignment]
        at_end.callback(ray.shutdown)
        try:
            yield unused, address == "local"
        except HeadLost:  # it would wait, until Ray ends the process by itself
            atexit.unregister(ray.shutdown)
            at_end.pop_all()
            raise
    if folder:  # after an error, its logs may help
        shutil.rmtree(folder, ignore_errors=True)


class _ImportPath(JobConfig):
    """Workers import from the current folder, as Ray wants, only if the driver does: it may be in
    a stranger's output, which ``tokpipe.cli`` takes off the driver's path."""

    def _serialize(self) -> str:
        own = {os.path.realpath(folder) for folder in sys.path}
        paths = self._py_driver_sys_path
        self._py_driver_sys_path = [path for path in paths if os.path.realpath(path) in own]
        return super()._serialize()


class _Service(ray._private.services.ConsolePopen):
    """A process of a local Ray, in another session: what ends the driver's group, such as
    `timeout`, must not end Ray before the driver has committed."""

    def __init__(self, command: list[str], *arguments: Any, **options: Any) -> None:
        if OF_LOCAL_RAY.items() <= os.environ.items():  # no metrics: the agent needs no web server
            command = [one + " --minimal" * ("/dashboard/agent.py" in one) for one in command]
        super().__init__(command, *arguments, start_new_session=True, **options)

    def terminate(self) -> None:  # it may block SIGTERM: see ``Signals``
        for one in [*psutil.Process(self.pid).children(recursive=True), self]:
            with suppress(psutil.NoSuchProcess):
                one.kill()


class _LocalNode(ray._private.node.Node):
    """A node without what would only delay the job: nobody sees a dashboard of it or the output of
    its workers, and it never gets other nodes. Ray waits until the dashboard is up."""

    start_api_server = start_monitor = start_log_monitor = lambda *_, **__: None  # type: ignore


def _set_token(variables: dict[str, str]) -> None:
    """Replace what sets the token of this process. Ray remembers it too."""
    for name in _OF_TOKEN:
        os.environ.pop(name, None)
    os.environ.update(variables)
    if loader := getattr(ray._raylet, "AuthenticationTokenLoader", None):  # not in older versions
        ray._raylet.Config.initialize("")  # type: ignore[attr-defined]
        loader.instance().reset_cache()


def check_reachable(address: str) -> None:
    """Raise OSError unless something listens at ``HOST:PORT``. Ray would try for 40 s."""
    place = urlsplit(f"//{address}")
    socket.create_connection((place.hostname, place.port or 80), CONNECT_TIMEOUT_S).close()


def check_address(address: str, where: str) -> None:
    """Raise ConfigError for an address of Ray Client, and RuntimeFault if this process must send a
    token and has none: Ray would crash."""
    if address.lower().startswith("ray://"):
        raise ConfigError(
            f"{address} is an address of Ray Client, which would run the driver on this machine "
            "and end the job with the connection. Use `tokpipe submit --address http://HEAD:8265`"
        )
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    must_send = os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
    if must_send and not os.environ.get("RAY_AUTH_TOKEN") and not path.exists():
        raise authentication_fault(where)


def use_token_of_this_machine() -> None:
    """As ``ray start`` and ``ray.init`` do, use a token if there is one and no mode is set."""
    with suppress(ImportError):  # older versions of Ray have no tokens
        from ray._private.authentication import authentication_token_setup as setup

        setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def authentication_fault(where: str) -> RuntimeFault:
    """Why a cluster did not accept this process, and what to set."""
    return RuntimeFault(
        f"{where}: authentication failed: the token is missing or wrong. Nothing was started. Set "
        "RAY_AUTH_MODE=token, and put the cluster's token into RAY_AUTH_TOKEN or "
        "~/.ray/auth_token (`ray get-auth-token` on the head prints it)"
    )


def _check_cluster(address: str, where: str) -> None:
    """Raise what ``ray.init`` would not explain: it takes a wrong token for a dead cluster."""
    check_address(address, where)
    full = ray._private.services.canonicalize_bootstrap_address_or_die(address)
    check_reachable(full)
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)  # Ray's C++ prints why it fails, besides raising it
    try:
        GcsClient(address=full)
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def warn_of_unused(addresses: list[str]) -> None:
    """Warn that clusters on this machine do not work on a job that started a local Ray."""
    if addresses:
        log_event(
            "cluster_unused",
            f"Ray is already running on this machine ({', '.join(addresses)}), but RAY_ADDRESS is "
            "not set, so this job started another, and CPUs are used twice. Set RAY_ADDRESS to use "
            "it, or runtime.cluster to local if this is intended.",
            level=logging.WARNING,
            addresses=addresses,
        )


def live_nodes() -> dict[str, dict[str, Any]]:
    """Return what Ray knows of each live node, by its id."""
    return {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}


def gpu_bytes(config: RuntimeConfig) -> dict[str, float]:
    """Memory of each kind of GPU that encoders may use, by Ray's name for it, as far as known: from
    one live node of each kind, and where none answers, what is usual for the name."""
    nodes, answers = live_nodes(), dict[str, Any]()
    for id in capacity_of(nodes.values(), config, on_gpu=True).nodes_for("encode"):
        names = (one.partition("accelerator_type:")[2] for one in nodes[id]["Resources"])
        if (kind := max(names) or "GPU") not in answers:
            answers[kind] = _CARD_BYTES.options(label_selector={"ray.io/node-id": id}).remote()
    kinds = {config.encode.accelerator_type, *answers}
    found: dict[str, float] = {kind: gb * GB for kind, gb in CARDS.items() if kind in kinds}
    deadline = time.monotonic() + CARDS_WITHIN_S
    for kind, answer in answers.items():
        # Other jobs may hold its GPUs, or torch sees none. To cancel it could crash the driver.
        with suppress(RayError):
            found[kind] = ray.get(answer, timeout=max(0.0, deadline - time.monotonic()))
    return found


def draining_nodes() -> frozenset[str]:
    """Ids of nodes that a person, an autoscaler or a cloud drains. No public function has them."""
    return frozenset(ray._private.state.state.get_draining_nodes())


def actor_options(pool: PoolConfig, *, zero_cpu: bool, avoid: Iterable[NodeId]) -> dict[str, Any]:
    """Return Ray's options for an actor of a pool, away from some nodes."""
    labels = dict(pool.labels)
    if nodes := ",".join(avoid):
        labels["ray.io/node-id"] = f"!in({nodes})"
    cpus = 0.0 if zero_cpu else pool.cpus
    return {"num_cpus": cpus, "resources": _resources(pool), "label_selector": labels}


def capacity_of(
    nodes: Iterable[Mapping[str, Any]], config: RuntimeConfig, *, on_gpu: bool
) -> Capacity:
    """Return what live nodes, as ``ray.nodes()`` lists them, have for each stage."""
    rooms = {}
    for node in nodes:
        has, labels = node["Resources"], node.get("Labels") or {}
        room = Room(has.get("CPU", 0.0), has.get("GPU", 0.0), slots := {})
        for stage in STAGES:
            pool: PoolConfig = getattr(config, stage)
            fits = [(has.get(name, 0.0) + 1e-9) // need for name, need in _resources(pool).items()]
            admits = (_admits(labels.get(key), wanted) for key, wanted in pool.labels.items())
            needs_gpu = on_gpu and stage == "encode"
            lacks = (pool.cpus and not room.cpus) or (needs_gpu and not room.gpus)
            slots[stage] = 0.0 if lacks or not all(admits) else min(fits, default=inf)
        rooms[node["NodeID"]] = room
    return Capacity(rooms)


def _resources(pool: PoolConfig) -> dict[str, float]:
    """The custom resources of one actor. Ray lists kinds of GPUs among those of a node."""
    kind = pool.accelerator_type
    return {**pool.resources, **({f"accelerator_type:{kind}": 0.001} if kind else {})}


def _admits(found: str | None, selector: str) -> bool:
    """Whether a node's label matches a selector, as Ray decides it."""
    wanted = selector.removeprefix("!")
    values = wanted[3:-1].split(",") if wanted.startswith("in(") else [wanted]
    return (found in [one.strip() for one in values]) != selector.startswith("!")
