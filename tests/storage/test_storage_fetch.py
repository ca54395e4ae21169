"""Bringing one video to local disk."""

from __future__ import annotations

import http.server
import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import S3Bucket
from tests.storage.fault_proxy import Fault, FaultProxy, Request
from tokpipe.config.job import StoreOptions
from tokpipe.errors import SourceError, StorageError
from tokpipe.storage import fetch_to_file, open_store
from tokpipe.storage.fetch import PIECE_BYTES
from tokpipe.types import ArchiveMember

OPTIONS = StoreOptions(deadline_s=10)
DATA = bytes(range(256)) * 100


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "fetched"
    path.mkdir()
    return path


def fetch(
    uri: str,
    folder: Path,
    member: ArchiveMember | None = None,
    max_bytes: int = 2**40,
    options: StoreOptions = OPTIONS,
) -> Path:
    return fetch_to_file(uri, member, folder, options=options, max_bytes=max_bytes)


def refused(reason: str, uri: str, folder: Path, **keywords: object) -> str:
    """Check that a fetch is refused for this reason and leaves no file; returns the message."""
    with pytest.raises(SourceError) as caught:
        fetch(uri, folder, **keywords)  # type: ignore[arg-type]
    assert caught.value.reason == reason
    assert list(folder.iterdir()) == []
    return str(caught.value)


def test_a_local_video_is_used_where_it_lies(tmp_path: Path, folder: Path) -> None:
    video = tmp_path / "a b#c.mp4"
    video.write_bytes(DATA)
    assert fetch(str(video), folder) == video
    assert fetch(f"file://{video}", folder) == video
    assert list(folder.iterdir()) == []


def test_what_is_no_regular_file_is_refused(tmp_path: Path, folder: Path) -> None:
    pipe, dangling, loop = tmp_path / "p.mp4", tmp_path / "d.mp4", tmp_path / "l.mp4"
    os.mkfifo(pipe)
    dangling.symlink_to("nowhere")
    loop.symlink_to("l.mp4")
    assert "is a pipe, not a regular file" in refused("not_a_file", str(pipe), folder)
    refused("not_a_file", str(tmp_path), folder)
    refused("not_a_file", "/dev/zero", folder)
    refused("missing", str(dangling), folder)
    refused("missing", str(tmp_path / "none.mp4"), folder)
    refused("missing", str(Path(__file__) / "below-a-file.mp4"), folder)
    refused("bad_uri", str(loop), folder)
    refused("bad_uri", "a\0b.mp4", folder)
    refused("bad_uri", "/" + "x" * 5000, folder)
    member = ArchiveMember(str(pipe), 0, 10)
    refused("not_a_file", f"{pipe}#a.mp4", folder, member=member)


def test_a_protocol_that_nobody_knows_is_the_rows_fault(folder: Path) -> None:
    refused("bad_uri", "htp://host/a.mp4", folder)


@pytest.fixture(params=["memory", "disk", pytest.param("s3", marks=pytest.mark.s3)])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URI of an object that holds DATA."""
    if request.param == "memory":
        root = f"memory://{uuid.uuid4().hex}"
    elif request.param == "disk":
        root = str(tmp_path / "store")
    else:
        bucket: S3Bucket = request.getfixturevalue("s3_bucket")
        root = bucket.uri
    open_store(root, OPTIONS).put("some/data.tar", DATA)
    return f"{root}/some/data.tar"


def test_a_member_is_cut_out_of_its_archive(uri: str, folder: Path) -> None:
    path = fetch(f"{uri}#../x/clip.MP4", folder, ArchiveMember(uri, 300, 1000))
    assert path.parent == folder
    assert path.suffix == ".MP4"
    assert path.read_bytes() == DATA[300:1300]


def test_an_empty_member_is_an_empty_file(uri: str, folder: Path) -> None:
    assert fetch(f"{uri}#a.mp4", folder, ArchiveMember(uri, 300, 0)).read_bytes() == b""


def test_a_member_beyond_its_archives_end_is_truncated(uri: str, folder: Path) -> None:
    for offset, size in ((0, len(DATA) + 1), (len(DATA) - 1, 2), (len(DATA) + 5, 1)):
        message = refused(
            "truncated", f"{uri}#a.mp4", folder, member=ArchiveMember(uri, offset, size)
        )
        assert f"ends at byte {len(DATA)}" in message


def test_too_large_is_refused_before_it_fills_the_disk(uri: str, folder: Path) -> None:
    refused("too_large", uri, folder, max_bytes=len(DATA) - 1)
    member = ArchiveMember(uri, 0, 11)
    refused("too_large", f"{uri}#a.mp4", folder, member=member, max_bytes=10)
    assert fetch(uri, folder, max_bytes=len(DATA)).read_bytes() == DATA


def test_a_missing_object_is_missing(uri: str, folder: Path) -> None:
    refused("missing", f"{uri}.no.mp4", folder)
    refused("missing", f"{uri}.no#a.mp4", folder, member=ArchiveMember(f"{uri}.no", 0, 1))


@pytest.mark.s3
def test_a_large_object_comes_in_pieces_and_keeps_its_suffix(
    s3_bucket: S3Bucket, folder: Path
) -> None:
    data = os.urandom(2 * PIECE_BYTES + 77)
    open_store(s3_bucket.uri, OPTIONS).put("a/clip.webm", data)
    path = fetch(f"{s3_bucket.uri}/a/clip.webm", folder)
    assert path.suffix == ".webm"
    assert path.read_bytes() == data


@pytest.mark.s3
@pytest.mark.parametrize("fault", [Fault.CUT_ANSWER, Fault.RESET])
def test_a_piece_that_comes_short_is_read_again(
    s3_bucket: S3Bucket, folder: Path, fault: Fault
) -> None:
    data = os.urandom(PIECE_BYTES + 77)
    open_store(s3_bucket.uri, OPTIONS).put("clip.mp4", data)
    spoiled: list[Request] = []

    def decide(request: Request) -> Fault | None:
        if request.method == "GET" and len(spoiled) < 2:
            spoiled.append(request)
            return fault
        return None

    with FaultProxy(s3_bucket.server.endpoint, decide) as proxy:
        options = StoreOptions(options={"s3": {"endpoint_url": proxy.endpoint}}, deadline_s=20)
        assert fetch(f"{s3_bucket.uri}/clip.mp4", folder, options=options).read_bytes() == data
    assert len(spoiled) == 2


@pytest.mark.s3
def test_an_object_replaced_while_it_is_read_is_refused(s3_bucket: S3Bucket, folder: Path) -> None:
    store = open_store(s3_bucket.uri, OPTIONS)
    store.put("clip.mp4", bytes(PIECE_BYTES + 77))
    gets: list[Request] = []

    def decide(request: Request) -> None:
        if request.method == "GET":
            gets.append(request)
            if len(gets) == 2:
                store.put("clip.mp4", bytes([1]) * (PIECE_BYTES + 77))

    with FaultProxy(s3_bucket.server.endpoint, decide) as proxy:
        options = StoreOptions(options={"s3": {"endpoint_url": proxy.endpoint}}, deadline_s=20)
        refused("changed", f"{s3_bucket.uri}/clip.mp4", folder, options=options)


@pytest.mark.s3
def test_a_store_that_keeps_failing_is_no_fault_of_the_video(
    s3_bucket: S3Bucket, folder: Path
) -> None:
    with FaultProxy(s3_bucket.server.endpoint, lambda _: Fault.RESET) as proxy:
        options = StoreOptions(options={"s3": {"endpoint_url": proxy.endpoint}}, deadline_s=1)
        with pytest.raises(StorageError, match="kept failing"):
            fetch(f"{s3_bucket.uri}/clip.mp4", folder, options=options)
    assert list(folder.iterdir()) == []


class _Web(http.server.BaseHTTPRequestHandler):
    """``/plain`` knows no ranges, ``/ranged`` does; both hold DATA. ``/busy`` works at last."""

    busy_left = 0

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _serve(self) -> None:
        name = self.path.partition("?")[0]
        if name == "/busy.mp4" and _Web.busy_left > 0:
            _Web.busy_left -= 1
            self.send_error(503)
            return
        if name == "/secret.mp4":
            self.send_error(403)
            return
        if name not in ("/plain.mp4", "/ranged.mp4", "/busy.mp4"):
            self.send_error(404)
            return
        wanted = self.headers.get("Range", "") if name == "/ranged.mp4" else ""
        start, end = 0, len(DATA) - 1
        if wanted:
            start, end = (int(part) for part in wanted.removeprefix("bytes=").split("-"))
            end = min(end, len(DATA) - 1)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(end + 1 - start))
        if name == "/ranged.mp4":
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(DATA[start : end + 1])

    do_GET = do_HEAD = _serve  # noqa: N815


@pytest.fixture
def web() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Web) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["plain.mp4", "ranged.mp4", "plain.mp4?token=a/b.c"])
def test_a_web_server_with_or_without_ranges_will_do(web: str, name: str, folder: Path) -> None:
    path = fetch(f"{web}/{name}", folder)
    assert path.read_bytes() == DATA
    assert path.suffix == ".mp4"
    path.unlink()
    refused("too_large", f"{web}/{name}", folder, max_bytes=len(DATA) - 1)


def test_what_a_web_server_refuses_is_the_videos_fault(web: str, folder: Path) -> None:
    refused("missing", f"{web}/none.mp4", folder)
    refused("access_denied", f"{web}/secret.mp4", folder)
    options = StoreOptions(deadline_s=0.5)
    refused("unreachable", "http://127.0.0.1:9/a.mp4", folder, options=options)


def test_a_busy_web_server_is_asked_again(web: str, folder: Path) -> None:
    _Web.busy_left = 3
    assert fetch(f"{web}/busy.mp4", folder).read_bytes() == DATA
