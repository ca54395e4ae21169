"""Copying one video to local disk."""

import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import S3Bucket
from tests.copies import open_copies
from tests.storage.fault_proxy import Fault, FaultProxy, Request
from tokpipe.config.job import StoreOptions
from tokpipe.errors import NodeTrouble, SourceError, StorageError
from tokpipe.storage import Store, fetch_to_file
from tokpipe.storage.fetch import PIECE_BYTES, LocalVideo
from tokpipe.types import ArchiveMember

OPTIONS = StoreOptions(deadline_s=10)
DATA = bytes(range(256)) * 100


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "fetched"
    path.mkdir()
    monkeypatch.setenv("TMPDIR", str(path))
    return path


def fetch(
    uri: str, folder: Path, member: ArchiveMember | None = None, **settings: Any
) -> LocalVideo:
    settings = {"options": OPTIONS, "max_bytes": 2**40, **settings}
    video = fetch_to_file(uri, member, **settings)
    assert list(folder.iterdir()) == [], "a copy has no name"
    return video


def rejected(reason: str, uri: str, folder: Path, **keywords: Any) -> str:
    """Check that a video is rejected for this reason, without a copy; return the message."""
    with pytest.raises(SourceError) as caught:
        fetch(uri, folder, **keywords)
    assert caught.value.reason == reason
    assert [*folder.iterdir(), *open_copies()] == []
    return str(caught.value)


def test_a_local_video_is_used_in_place(tmp_path: Path, folder: Path) -> None:
    video = tmp_path / "a b#c.mp4"
    video.write_bytes(DATA)
    assert fetch(str(video), folder).path == video
    assert fetch(f"file://{video}", folder).path == video
    assert open_copies() == []


def test_files_that_are_not_regular_are_rejected(tmp_path: Path, folder: Path) -> None:
    pipe, dangling, loop = (tmp_path / f"{name}.mp4" for name in ("pipe", "dangling", "loop"))
    os.mkfifo(pipe)
    dangling.symlink_to("nowhere")
    loop.symlink_to("loop.mp4")
    assert "is not a regular file but p" in rejected("not_a_file", str(pipe), folder)
    rejected("not_a_file", f"{pipe}#a.mp4", folder, member=ArchiveMember(str(pipe), 0, 10))
    for reason, uris in {
        "not_a_file": (tmp_path, "/dev/zero"),
        "missing": (dangling, tmp_path / "none.mp4", Path(__file__) / "below-a-file.mp4"),
        "bad_uri": (loop, "a\0b.mp4", "/" + "x" * 5000, "htp://host/a.mp4"),
    }.items():
        for uri in uris:
            rejected(reason, str(uri), folder)


@pytest.fixture
def uri(root: str) -> str:
    """URI of an object that holds DATA."""
    Store(root, OPTIONS).put("some/data.tar", DATA)
    return f"{root}/some/data.tar"


def test_a_member_is_copied_out_of_its_archive(uri: str, folder: Path) -> None:
    copy = fetch(f"{uri}#../x/clip.MP4", folder, ArchiveMember(uri, 300, 1000))
    assert copy.file_name.endswith(".MP4")
    assert copy.path.read_bytes() == DATA[300:1300]
    assert len(open_copies()) == 1
    copy.close()
    assert open_copies() == []
    empty = fetch(f"{uri}#a.mp4", folder, ArchiveMember(uri, 300, 0))
    assert empty.path.read_bytes() == b""


def test_a_member_beyond_the_end_of_its_archive_is_truncated(uri: str, folder: Path) -> None:
    for offset, size in ((0, len(DATA) + 1), (len(DATA) - 1, 2), (len(DATA) + 5, 1)):
        member = ArchiveMember(uri, offset, size)
        message = rejected("truncated", f"{uri}#a.mp4", folder, member=member)
        assert f"ends at byte {len(DATA)}" in message


def test_a_missing_or_too_large_source_is_rejected(uri: str, folder: Path) -> None:
    rejected("missing", f"{uri}.no.mp4", folder)
    rejected("missing", f"{uri}.no#a.mp4", folder, member=ArchiveMember(f"{uri}.no", 0, 1))
    rejected("too_large", uri, folder, max_bytes=len(DATA) - 1)
    member = ArchiveMember(uri, 0, 11)
    rejected("too_large", f"{uri}#a.mp4", folder, member=member, max_bytes=10)
    copy = fetch(uri, folder, max_bytes=len(DATA))
    assert copy.path.read_bytes() == DATA


@pytest.mark.s3
@pytest.mark.parametrize("fault", [Fault.CUT_ANSWER, Fault.RESET])
def test_a_large_object_is_copied_in_pieces_and_a_short_one_is_read_again(
    s3_bucket: S3Bucket, proxy: FaultProxy, folder: Path, fault: Fault
) -> None:
    data = os.urandom(2 * PIECE_BYTES + 77)
    Store(s3_bucket.uri, OPTIONS).put("clip.webm", data)
    faults = [fault] * 2
    proxy.disturb(lambda request: faults.pop() if request.method == "GET" and faults else None)
    copy = fetch(f"{s3_bucket.uri}/clip.webm", folder, options=proxy.options())
    assert copy.path.read_bytes() == data
    assert copy.file_name.endswith(".webm")
    assert not faults


@pytest.mark.s3
def test_an_object_that_is_replaced_while_it_is_read_is_rejected(
    s3_bucket: S3Bucket, proxy: FaultProxy, folder: Path
) -> None:
    store = Store(s3_bucket.uri, OPTIONS)
    store.put("clip.mp4", bytes(PIECE_BYTES + 77))

    def decide(request: Request) -> None:
        if [one.method for one in proxy.requests].count("GET") == 2:
            store.put("clip.mp4", bytes([1]) * (PIECE_BYTES + 77))

    proxy.disturb(decide)
    rejected("changed", f"{s3_bucket.uri}/clip.mp4", folder, options=proxy.options())


@pytest.mark.s3
def test_a_video_is_not_rejected_because_its_store_keeps_failing(
    s3_bucket: S3Bucket, proxy: FaultProxy, folder: Path
) -> None:
    proxy.disturb(lambda _: Fault.RESET)
    with pytest.raises(StorageError, match="kept failing"):
        fetch(f"{s3_bucket.uri}/clip.mp4", folder, options=proxy.options(deadline_s=1))
    assert [*folder.iterdir(), *open_copies()] == []


class _Web(http.server.BaseHTTPRequestHandler):
    """``/ranged.mp4`` honours ranges, ``/plain.mp4`` does not, ``/busy.mp4`` fails three times."""

    num_busy = 0

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _serve(self) -> None:
        name = self.path.partition("?")[0]
        if name == "/busy.mp4" and _Web.num_busy < 3:
            _Web.num_busy += 1
            self.send_error(503)
        elif name not in ("/plain.mp4", "/ranged.mp4", "/busy.mp4"):
            self.send_error(403 if name == "/secret.mp4" else 404)
        else:
            wanted = self.headers.get("Range", "") if name == "/ranged.mp4" else ""
            start, _, last = wanted.removeprefix("bytes=").partition("-")
            data = DATA[int(start or 0) : int(last or len(DATA)) + 1]
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(data)))
            if name == "/ranged.mp4":
                self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

    do_GET = do_HEAD = _serve  # noqa: N815


@pytest.fixture
def web() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Web) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["plain.mp4", "ranged.mp4", "plain.mp4?token=a/b.c", "busy.mp4"])
def test_web_servers_without_ranges_and_busy_ones_work(web: str, name: str, folder: Path) -> None:
    copy = fetch(f"{web}/{name}", folder)
    assert copy.path.read_bytes() == DATA
    assert copy.file_name.endswith(".mp4")
    copy.close()
    rejected("too_large", f"{web}/{name}", folder, max_bytes=len(DATA) - 1)


def test_a_video_that_a_web_server_does_not_return_is_rejected(web: str, folder: Path) -> None:
    rejected("missing", f"{web}/none.mp4", folder)
    rejected("access_denied", f"{web}/secret.mp4", folder)
    options = StoreOptions(deadline_s=0.5)
    rejected("unreachable", "http://127.0.0.1:9/a.mp4", folder, options=options)


def test_a_vanished_folder_for_copies_is_made_again_or_is_the_nodes_trouble(
    uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = ArchiveMember(uri, 300, 1000)
    folder.rmdir()  # a cleaner removes empty folders
    copy = fetch(f"{uri}#a.mp4", folder, member)
    assert copy.path.read_bytes() == DATA[300:1300]
    monkeypatch.setenv("TMPDIR", str(Path(__file__) / "below-a-file"))
    with pytest.raises(NodeTrouble, match="TMPDIR"):
        fetch(f"{uri}#a.mp4", folder, member)
