"""What all tests share: a real S3 server on loopback, a Ray cluster, settings of libraries."""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

from tests.hub_server import Hub, running_hub
from tests.s3_server import S3Server, fresh_bucket, running_s3_server

# Before torch is loaded: its threads otherwise spin while they wait for each other, and on a busy
# machine that is most of what they do.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Ray would turn tokens on in a process that once started a cluster of its own, and then fail to
# join clusters without them.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Ray's default, 15, would starve its workers on a busy machine.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112

# The same examples in every run, however busy the machine; `make chaos` explores new ones.
settings.register_profile("repeat", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("TOKPIPE_TEST_PROFILE", "repeat"))


@pytest.fixture(autouse=True)
def _children_get_signals() -> None:
    """Children inherit what is ignored, as in the background of a shell, and what is blocked."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class S3Bucket:
    """A fresh bucket on the server; the environment is set so that s3fs finds it."""

    name: str
    server: S3Server

    @property
    def uri(self) -> str:
        return f"s3://{self.name}"


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One SeaweedFS for the whole session."""
    with running_s3_server(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture
def s3_bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Bucket:
    """Make a fresh bucket, and point the AWS variables of the environment at its server."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return S3Bucket(fresh_bucket(s3_server), s3_server)


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """Address of a one-node cluster with two CPUs.

    Tests that need no particular cluster share it, because a new one takes seconds.
    """
    from ray.cluster_utils import Cluster  # most of what starting a test run would take

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
    )
    yield cluster.address
    cluster.shutdown()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A stand-in for the Hugging Face Hub, an empty cache for it in this process, and no token."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with running_hub() as hub:
        yield hub
