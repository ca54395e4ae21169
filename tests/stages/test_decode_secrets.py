"""What leaves the decode stage and the store's client repeats no secret."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tokpipe.config.job import DecodeConfig, FramesConfig, SamplingConfig, StoreOptions
from tokpipe.errors import SourceError
from tokpipe.formats.manifest.entry import ManifestEntry
from tokpipe.stages.decode import DecodeStage
from tokpipe.storage.fetch import fetch_to_file
from tokpipe.telemetry.redact import MASK
from tokpipe.types import Failed, Rejected, WorkItem

PLANTED = "pl4nted-s3cret"


@pytest.fixture
def dead_address() -> str:
    """An address of this machine at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        return f"127.0.0.1:{held.getsockname()[1]}"


@pytest.mark.parametrize("uri", ["http://me:{s}@{a}/a.mp4", "http://{a}/a.mp4?sig={s}"])
def test_an_unreachable_source_is_told_without_its_secret(
    uri: str, dead_address: str, tmp_path: Path
) -> None:
    uri = uri.format(s=PLANTED, a=dead_address)
    with pytest.raises(SourceError) as raised:
        fetch_to_file(uri, None, tmp_path, options=StoreOptions(deadline_s=1), max_bytes=100)
    assert raised.value.reason == "unreachable"
    assert PLANTED not in str(raised.value)
    assert MASK in str(raised.value)


def test_a_rejection_and_its_manifest_entry_name_the_source_without_its_secret(
    dead_address: str, tmp_path: Path
) -> None:
    sampling, frames = SamplingConfig(), FramesConfig(size=(32, 32))
    stage = DecodeStage(sampling, frames, DecodeConfig(), StoreOptions(deadline_s=1))
    stage.setup(tmp_path)
    uri = f"http://{dead_address}/a.mp4?X-Amz-Signature={PLANTED}"
    problem = f"line 2 of t.csv names a video outside (video {uri})"
    failed, rejected = stage.process(
        [WorkItem(0, "0" * 32, uri), WorkItem(1, "1" * 32, "t.csv#line=2", problem=problem)]
    )
    stage.close()
    assert isinstance(failed, Failed)
    assert isinstance(rejected, Rejected)
    assert failed.ref.source_uri == f"http://{dead_address}/a.mp4?X-Amz-Signature={MASK}"
    given_up = Rejected(failed.ref, "decode", failed.reason, failed.message)
    refused = (given_up, rejected)
    entry = ManifestEntry(
        seq=0, writer="w", written_at="2026-01-01T00:00:00+00:00", rejected=refused
    )
    assert PLANTED not in entry.to_json().decode()
    assert MASK in entry.to_json().decode()
