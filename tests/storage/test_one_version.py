"""Tables and tars that are replaced, cut short or emptied while they are planned."""

import email.utils
import functools
import gzip
import http.server
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import S3Bucket
from tests.sources.reading import Rows, read, tar
from tests.storage.fault_proxy import FaultProxy
from tokpipe.config.job import StoreOptions
from tokpipe.errors import Changed, ConfigError
from tokpipe.storage import Store
from tokpipe.storage.ranged import Pinned, RangedFile

KINDS = ["csv", "csv.gz", "jsonl", "parquet", "tar"]
CHANGES = ["replaced", "truncated", "emptied"]


@functools.cache
def made(kind: str, letter: str, num_rows: int = 12) -> bytes:
    """Return a source whose size does not depend on the letter, cut by fewer rows."""
    names = [f"/{letter}/{n:03}-{'x' * 60}.mp4" for n in range(num_rows)]
    if kind == "tar":
        return tar({f"{letter}{n}.mp4": bytes(200) for n in range(num_rows // 3)})
    if kind == "parquet":
        sink = pa.BufferOutputStream()
        plain = {"compression": "none", "use_dictionary": False, "row_group_size": 6}
        pq.write_table(pa.table({"url": names}), sink, **plain)
        return bytes(sink.getvalue().to_pybytes())
    if kind == "jsonl":
        return "".join(f'{{"url":"{name}"}}\n' for name in names).encode()
    text = "".join(f"{line}\n" for line in ["url", *names]).encode()
    return gzip.compress(text, compresslevel=0, mtime=0) if kind == "csv.gz" else text


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Pinned.open
    monkeypatch.setattr(
        Pinned, "open", lambda one, _: opened(one, 2048 if one.uri.endswith("tar") else 512)
    )


class Source:
    """A source that changes just before its k-th range or request."""

    num_before = 0
    """Requests that come before the first range; a change before them is no change."""

    def __init__(self, uri: str, put: Callable[[bytes], None], options: StoreOptions) -> None:
        self.uri, self.put, self.options = uri, put, options
        self.num, self.at = 0, -1
        self.then: Callable[[], None] = lambda: None

    def count(self) -> None:
        if self.num == self.at:
            self.then()
        self.num += 1

    def read(self, kind: str, first: bytes, at: int = -1, then: bytes = b"") -> Rows:
        self.num = 0
        self.put(first)
        self.num, self.at, self.then = 0, at, lambda: self.put(then)
        prefixes = {} if kind == "tar" else {"allowed_prefixes": ("/", "s3://", "http://")}
        return read("webdataset" if kind == "tar" else "table", self.uri, self.options, **prefixes)


def check_every_boundary(source: Source, kind: str, change: str) -> int:
    """Check all outcomes; return how often the change was named.

    What comes out is the old version, the new one if nothing of the old was seen, or an error.
    """
    first = made(kind, "a")
    then = {
        "replaced": made(kind, "b"),
        "truncated": made(kind, "a", num_rows=6),
        "emptied": b"",
    }[change]
    after = [] if change == "emptied" else source.read(kind, then)
    before = source.read(kind, first)
    num = source.num
    assert num >= source.num_before
    num_changed = 0
    for k in range(num):
        try:
            rows = source.read(kind, first, k, then)
        except Changed:
            num_changed += 1
        except ConfigError:
            assert k < source.num_before, f"another error after range {k}"
        else:
            # Reading the new version whole is right, too, if the sizes did not show the change.
            is_new = rows == after and (len(then) == len(first) or k < source.num_before)
            is_named = len(rows) == 1 and rows[0]["problem"] and k < source.num_before
            assert rows == before or is_new or is_named, (k, rows)
    return num_changed


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_changes_between_two_ranges_is_an_error(
    kind: str, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put(data: bytes) -> None:
        path.write_bytes(data)
        if source.num == 0:  # else the same moment could be the time of both versions
            os.utime(path, (1e9, 1e9))

    def counted(self: RangedFile, buffer: bytearray) -> int:
        source.count()
        return readinto(self, buffer)

    path = tmp_path / f"source.{kind}"
    source, readinto = Source(str(path), put, StoreOptions(deadline_s=2)), RangedFile.readinto
    monkeypatch.setattr(RangedFile, "readinto", counted)
    assert check_every_boundary(source, kind, change)


@pytest.mark.s3
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_an_object_that_changes_between_two_ranges_is_an_error(
    kind: str, change: str, s3_bucket: S3Bucket, proxy: FaultProxy
) -> None:
    store = Store(s3_bucket.uri, StoreOptions())
    name = f"source.{kind}"
    uri, put = store.uri_of(name), functools.partial(store.put, name)
    source = Source(uri, put, proxy.options(deadline_s=5))
    source.num_before = 2
    proxy.disturb(lambda _: source.count())
    assert check_every_boundary(source, kind, change)
    proxy.disturb(lambda _: None)
    source.read(kind, made(kind, "a"))
    # No request but those for the size and for each range.
    methods = [request.method for request in proxy.requests]
    assert methods == ["HEAD"] * 2 + ["GET"] * (len(methods) - 2)


class Web(http.server.BaseHTTPRequestHandler):
    """Serves one object, with ranges and a name of its version as the first part of the path says.

    XX"""

    protocol_version = "HTTP/1.1"
    data, written_s = b"", 1e9
    source: Source

    def log_message(self, format: str, *args: object) -> None:
        pass

    def serve(self) -> None:
        Web.source.count()
        how = self.path.split("/")[1]
        wanted = self.headers.get("Range", "") if how != "whole" else ""
        start, _, last = wanted.removeprefix("bytes=").partition("-")
        data = Web.data[int(start or 0) : int(last or len(Web.data)) + 1]
        if wanted and not data:
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(data)))
        if wanted:
            extent = f"bytes {start}-{int(start) + len(data) - 1}/{len(Web.data)}"
            self.send_header("Content-Range", extent)
        if how == "etag":
            self.send_header("ETag", f'"{hash(Web.data)}"')
        if how in ("time", "whole"):
            self.send_header("Last-Modified", email.utils.formatdate(Web.written_s, usegmt=True))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    do_GET = do_HEAD = serve  # noqa: N815


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    ("how", "kind"),
    [*(("etag", kind) for kind in KINDS), ("time", "csv"), ("plain", "jsonl"), ("whole", "csv")],
)
def test_a_page_that_changes_between_two_ranges_is_an_error(
    how: str, kind: str, change: str, web: str
) -> None:
    def put(data: bytes) -> None:
        Web.data, Web.written_s = data, Web.written_s + 1

    Web.source = Source(f"{web}/{how}/source.{kind}", put, StoreOptions(deadline_s=2))
    Web.source.num_before = 3 if how == "plain" else 2
    is_named = check_every_boundary(Web.source, kind, change)
    assert is_named or how == "plain"  # which is asked for everything, once
