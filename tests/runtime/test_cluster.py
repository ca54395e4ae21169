"""Which cluster a driver works on, and that one it leaves unused does not go unnoticed."""

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import ray
import ray._private.services as services

from tests.end_to_end.jobs import (
    RUNTIME,
    files,
    finish,
    slow_tokenizer,
    start,
    write_job,
    write_videos,
)  # fmt: skip
from tokpipe.errors import RuntimeFault
from tokpipe.runtime.cluster import connected


@pytest.fixture(autouse=True)
def _variables_are_restored() -> Iterator[None]:
    """A driver sets some for a Ray that it starts."""
    with mock.patch.dict(os.environ):
        yield


@pytest.mark.ray
def test_a_job_that_starts_a_local_ray_beside_a_cluster_says_so(
    ray_address: str, tmp_path: Path
) -> None:
    """Nor does Ray itself say anything, although a lease fails and a worker dies."""
    write_videos(tmp_path, 1)
    log = tmp_path / "log.jsonl"
    tokenizer = slow_tokenizer(until=tmp_path)
    tokenizer |= {
        "implementation": "tests.models.custom_tokenizers:Interrupts",
        "arguments": {"folder": str(tmp_path)},
    }
    job = write_job(
        tmp_path / "job.yaml",
        files(tmp_path),
        str(tmp_path / "out"),
        tokenizer=tokenizer,
        runtime={**RUNTIME, "log_path": str(log)},
    )
    code, printed = finish(start(job))
    assert code == 0, printed
    assert (tmp_path / "died").exists()
    assert not [text for text in ("Traceback", "(raylet)", "\x1b") if text in printed], printed
    printed = " ".join(printed.split())
    assert "warning: Ray is already running on this machine" in printed
    assert ray_address in printed
    (event,) = (
        event
        for event in map(json.loads, log.read_text().splitlines())
        if event["event"] == "cluster_unused"
    )
    assert ray_address in event["addresses"]


@pytest.mark.parametrize(
    ("cluster", "environment", "running", "unused"),
    [
        ("auto", None, {"10.0.0.1:6379", "10.0.0.2:6379"}, ["10.0.0.1:6379", "10.0.0.2:6379"]),
        ("auto", None, set(), []),  # a file that names a dead cluster is not looked at
        ("auto", "10.0.0.1:6379", {"10.0.0.1:6379"}, []),
        ("local", None, {"10.0.0.1:6379"}, []),
        ("10.0.0.1:6379", None, {"10.0.0.1:6379"}, []),
    ],
    ids=["two clusters", "none", "RAY_ADDRESS", "local on purpose", "by address"],
)
def test_a_cluster_counts_as_unused_only_where_the_job_file_leaves_the_choice(
    cluster: str,
    environment: str | None,
    running: set[str],
    unused: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if environment is not None:
        monkeypatch.setenv("RAY_ADDRESS", environment)
    monkeypatch.setattr(services, "find_gcs_addresses", lambda: running)
    for name in ("init", "shutdown"):
        monkeypatch.setattr(ray, name, lambda **_: None)
    monkeypatch.setattr("tokpipe.runtime.cluster._check_cluster", lambda *_: None)
    with connected(cluster) as (found, is_local):
        assert found == unused
        assert is_local == ((environment if cluster == "auto" else cluster) in (None, "local"))


@pytest.mark.parametrize(
    "error",
    [
        Exception("The current node timed out during startup.\nThis could happen because"),
        RuntimeError(
            "\x1b[31mVersion mismatch: The cluster was started with:\n    Ray: 2.9.0\x1b[0m"
        ),
        ConnectionError("Could not find any running Ray instance.\n\n"),
        ray.exceptions.RaySystemError(
            "the raylet did not start", "Traceback (most recent call last)"
        ),
    ],
    ids=["time-out", "versions", "nothing there", "system"],
)
def test_what_ray_raises_while_it_starts_becomes_one_plain_line(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))

    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(RuntimeFault, match="no connection to Ray") as caught, connected("local"):
        pass
    line = str(caught.value)
    assert line.isprintable(), "no line breaks and no escape codes"
    assert ".." not in line


@pytest.mark.parametrize("is_own", [True, False], ids=["on its path", "an output"])
def test_workers_import_from_the_current_folder_only_if_the_driver_does(
    is_own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path[1:], *[str(tmp_path)] * is_own])
    sent: list[str] = []

    def init(job_config: Any, **_: object) -> None:
        job_config._py_driver_sys_path.append(str(tmp_path))  # as Ray's does
        job_config._serialize()
        sent.extend(job_config._get_proto_job_config().py_driver_sys_path)
        assert not ray._private.ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV

    monkeypatch.setattr(ray, "init", init)
    with connected("local"):
        assert sent == [str(tmp_path)] * is_own


@pytest.mark.parametrize("ended", ["well", "with an error", "before it started"])
@pytest.mark.parametrize(
    "mine", [{}, {"RAY_AUTH_TOKEN": "mine", "RAY_AUTH_MODE": "token"}], ids=len
)
def test_a_local_ray_leaves_neither_its_token_nor_after_a_good_end_its_folder(
    ended: str, mine: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 30)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    for name in ("RAY_TMPDIR", "RAY_AUTH_TOKEN", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in mine.items():
        monkeypatch.setenv(name, value)
    folders = []

    def init(**options: Any) -> None:
        folders.append(Path(options["_temp_dir"]))
        folders[0].mkdir()
        os.environ["RAY_AUTH_MODE"] = "token"  # as Ray does
        token = os.environ["RAY_AUTH_TOKEN"]
        assert token == mine.get("RAY_AUTH_TOKEN", token)
        if ended == "before it started":
            raise RuntimeError

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with contextlib.suppress(RuntimeFault), connected("local"):
        if ended == "with an error":
            raise RuntimeFault
    assert {name: os.environ[name] for name in os.environ if "RAY_AUTH" in name} == mine
    (folder,) = folders
    assert folder.parents[1] == Path("/tmp"), "names of sockets are limited"
    assert folder.parent.exists() == (ended != "well"), "its logs may help"
    shutil.rmtree(folder.parent, ignore_errors=True)


@pytest.mark.ray
def test_a_local_ray_has_no_more_services_than_a_job_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with connected("local"):
        node: Any = ray._private.worker._global_node
        found = set(node.all_processes)
        assert found <= {"gcs_server", "raylet", "reaper"}
        assert ray.get(ray.remote(lambda: 1).remote()) == 1
    assert ray._private.node.Node.__name__ == "Node"
