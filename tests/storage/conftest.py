"""One prefix in every kind of store, and a proxy in front of the S3 server."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.s3_server import S3Server
from tests.storage.fault_proxy import FaultProxy
from tokpipe.config.job import StoreOptions
from tokpipe.storage import Store


@pytest.fixture(params=["memory", "disk", pytest.param("s3", marks=pytest.mark.s3)])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URI of an empty prefix."""
    uri = f"memory://{uuid.uuid4().hex}/out" if request.param == "memory" else f"{tmp_path}/out"
    if request.param == "s3":
        uri = f"{request.getfixturevalue('s3_bucket').uri}/some/out"
    return Store(uri, StoreOptions()).uri


@pytest.fixture(scope="session")
def proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.endpoint) as proxy:
        yield proxy
