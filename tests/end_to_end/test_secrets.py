"""Secrets that a job needs to read its sources stay in its plan and in the environment."""

import http.server
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.end_to_end.jobs import RUNTIME, rejections_of, run_well, write_job, write_video

SIGNATURE, PASSWORD, AWS_SECRET = "pl4nted-signature", "pl4nted-password", "pl4nted/aws+secret"
PLANTED = [SIGNATURE, PASSWORD, AWS_SECRET, "pl4nted%2Faws%2Bsecret"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """``host:port`` of a web server with one video, which denies or fails every other request."""
    write_video(tmp_path / "good.mp4")
    video = (tmp_path / "good.mp4").read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = {"/good.mp4": 200, "/denied.mp4": 403}.get(self.path.partition("?")[0], 500)
            body = video if status == 200 else b"no"
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{listening.server_port}"
    listening.shutdown()
    listening.server_close()


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    # A short path, because it begins the names of Ray's sockets.
    folder = Path(tempfile.mkdtemp(prefix="r-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def kept(folder: Path) -> Iterator[Path]:
    """Links to all files that are ever in a folder, which a run that ends well removes."""
    links, is_over = Path(tempfile.mkdtemp(dir=folder.parent)), threading.Event()

    def watch() -> None:
        while not is_over.wait(0.2):
            for path in folder.rglob("*"):
                with suppress(OSError):
                    if path.is_file() and not path.is_symlink():
                        os.link(path, links / f"{path.stat().st_ino}{path.suffix}")

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield links
    finally:
        is_over.set()
        watching.join()
        shutil.rmtree(links)


def files_with_secrets(folder: Path) -> list[str]:
    return [
        f"{path}: {secret}"
        for path in folder.rglob("*")
        if path.is_file()
        for secret in PLANTED
        if secret.encode() in path.read_bytes()
    ]


@pytest.mark.ray
def test_planted_secrets_are_only_in_the_plan(
    tmp_path: Path, server: str, ray_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", AWS_SECRET)
    monkeypatch.setenv("RAY_TMPDIR", str(ray_folder))
    urls = [
        f"http://{server}/good.mp4?X-Amz-Signature={SIGNATURE}",
        f"http://user:{PASSWORD}@{server}/denied.mp4",
        f"http://{server}/failing.mp4?x=1&sig={SIGNATURE}",
        f"http://{server}/failing.mp4?also={AWS_SECRET}",
        f"/etc/passwd?token={SIGNATURE}",
    ]
    table = tmp_path / "t.jsonl"
    table.write_text("\n".join(json.dumps({"url": url}) for url in [*urls, urls[0]]))
    output = tmp_path / "out"
    job = write_job(
        tmp_path / "job.yaml",
        {
            "kind": "table",
            "uri": str(table),
            "uri_column": "url",
            "allowed_prefixes": ["http://", f"http://{server}"],
        },
        str(output),
        max_rejected_fraction=1.0,
        on_duplicate="keep_first",
        storage={"deadline_s": 5},
        runtime={**RUNTIME, "max_attempts": 1},
    )
    with kept(ray_folder) as files:
        printed = run_well(job)
        assert list(files.glob("*.log")), "the logs of Ray must be there to be searched"
        assert not files_with_secrets(files)
    assert sorted(rejections_of(job).values()) == sorted(
        ["access_denied", "bad_row", "unreachable", "unreachable"]
    ), printed
    assert not [secret for secret in PLANTED if secret in printed]
    plan = output / "plan"
    (part,) = plan.rglob("*.parquet")
    assert urls[0] in pq.read_table(part)["source_uri"].to_pylist()  # or nothing could be fetched
    shutil.rmtree(plan)
    assert not files_with_secrets(output)
    for path in [*output.glob("shards/*"), *output.glob("clips/*")]:
        assert "pl4nted" not in str(pq.read_table(path).to_pylist())
    assert list(output.glob("shards/*.parquet"))
    assert not list(ray_folder.iterdir())
