"""Web requests stay where they are allowed, whatever a table or a redirecting server writes."""

import asyncio
import http.server
import random
import re
import socket
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pytest
from pydantic import TypeAdapter
from yarl import URL

from tokpipe.config.job import StoreOptions
from tokpipe.config.sources import Source
from tokpipe.errors import SourceError
from tokpipe.reconstruct.frames import SideBySide
from tokpipe.sources.rows import items_of
from tokpipe.storage.client import ALLOWED
from tokpipe.storage.fetch import fetch_to_file
from tokpipe.storage.gate import _Gate
from tokpipe.types import WorkItem

DATA = b"a video"
Server = http.server.ThreadingHTTPServer


class _Web(http.server.BaseHTTPRequestHandler):
    heard: list[str]
    target = ""

    def do_GET(self) -> None:
        self.heard.append(self.path)
        status = re.search(r"/redirect/(\d+)", self.path)
        self.send_response(int(status[1]) if status else 200)
        if status:
            self.send_header("Location", self.target.encode().decode("latin-1"))
        data = b"" if status else DATA
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


def _serving(family: int, host: str) -> Server:
    handler = type("Web", (_Web,), {"heard": []})
    server: Server = type("Any", (Server,), {"address_family": family})((host, 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server


@pytest.fixture
def servers() -> Iterator[tuple[Server, Server]]:
    """One that a job may read from, and one that must hear nothing, on all addresses."""
    both = _serving(socket.AF_INET, "127.0.0.1"), _serving(socket.AF_INET6, "::")
    yield both
    for server in both:
        server.shutdown()
        server.server_close()


def heard(server: Server) -> list[str]:
    return server.RequestHandlerClass.heard  # type: ignore[attr-defined,no-any-return]


def fetch(uri: str, *allowed: str, written: bool = False) -> str:
    """Fetch as a decoder does; return "" or the reason of the rejection."""
    options = StoreOptions(deadline_s=1)
    ALLOWED.set(None if written else allowed)
    try:
        fetch_to_file(uri, None, options=options, max_bytes=1000).close()
    except SourceError as error:
        return error.reason
    finally:
        ALLOWED.set(None)
    return ""


DOTS = ["..", "%2e%2e", ".%2E", "%252e%252e", "%25252e.", "..;", "..;x=1", ". .", "..%20", "...."]
DOTS += ["\t..", ".\t.", "%09..", ".%0d.", "..%00", "%c0%ae%c0%ae", "\uff0e\uff0e", "%u002e%u002e"]
SLASHES = ["/", "//", "\\", "%2f", "%2F", "%5c", "%252f", "%255C", "%c0%af", "/./", "\uff0f", "/\n"]
WORDS = ["a.mp4", "secret", "videos", "x y", "%C3%A9", "...", ".a", "a..b", "videosx", "%", "\xe9"]
ENDS = ["", "?x=1", "?p=/../secret", "#f", ";v=1", "?", "#/../x", "%3f/../secret", "%23/../x"]


def generated(prefix: str, other: int, count: int) -> Iterator[str]:
    """Yield URLs around a prefix; those with another host lead to another local server."""
    rng = random.Random(16)
    scheme, _, rest = prefix.partition("://")
    host, _, folder = rest.partition("/")
    numbers = ["2130706433", "0x7f000001", "017700000001", "127.1", "0", "[::1]", "[::ffff:7f00:1]"]
    names = ["localhost", "LOCALHOST.", "\uff11\uff12\uff17.0.0.1", "127.0.0.1", "127.0.0.2"]
    hosts = [f"{one}:{other}" for one in (*numbers, *names)]
    hosts += [f"{host}@{one}" for one in hosts] + [f"{host}{c}@{hosts[0]}" for c in "\\#?/\t%"]
    for _ in range(count):
        place = rng.choice([host] * 40 + hosts)
        path = rng.choice([folder] * 5 + [f"{folder}x", "", f"/{folder}", folder.upper()])
        for _ in range(rng.randrange(1, 5)):
            path += rng.choice(["/"] * 20 + SLASHES) + rng.choice(WORDS * 5 + DOTS)
        yield f"{rng.choice([scheme] * 9 + ['HTTP', 'https'])}://{place}/{path}{rng.choice(ENDS)}"


def as_a_server_may_read(path: str) -> str:
    while (after := unquote(path, "latin-1")) != path:
        path = after
    path = path.replace("\xc0\xae", ".").replace("\xc0\xaf", "/").replace("%u002e", ".")
    path = unicodedata.normalize("NFKC", path.encode("latin-1", "ignore").decode(errors="replace"))
    path = re.sub(r"[\x00-\x20]", "", path.split("?")[0]).replace("\\", "/")
    parts: list[str] = []
    for part in re.sub(r";[^/]*", "", path).split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return f"/{'/'.join(parts)}/"


def test_no_generated_url_reaches_what_is_not_below_the_prefix(
    servers: tuple[Server, Server],
) -> None:
    server, other = servers
    prefix = f"http://127.0.0.1:{server.server_port}/videos"
    urls = list(generated(prefix, other.server_port, 500))
    reasons = [fetch(url, prefix) for url in urls]
    assert [one for one in heard(server) if not one.startswith("/videos/")] == []
    outside = [one for one in heard(server) if not as_a_server_may_read(one).startswith("/videos/")]
    assert outside == []
    assert heard(other) == []
    assert reasons.count("") > 50  # and what is below is read


DROPPED = ["%FF", "%80", "%E2%80%8B", "%C2%AD", "%EF%BB%BF", "%EF%B8%8F", "%EF%BF%BD", "%C2%A0"]
DROPPED += ["%C2%85", "%CD%8F", "%F3%A0%80%81", "%EE%80%80", "%C3%A9", "%F0%9F%98%80", "%ED%A0%80"]
SLASHLIKE = ["%E2%88%95", "%E2%81%84", "%E2%A7%B8", "%E2%95%B1", "%E2%88%96", "%E2%A7%B5", "\uff0f"]
SLASHLIKE += ["%E2%9F%8B", "%EF%B9%A8", "%E0%80%AF", "%F0%80%80%AF", "%F8%80%80%80%AF", "%C1%9C"]
MISREAD = [f"{form}/secret" for one in DROPPED for form in (f"..{one}", f".{one}.", f"{one}..")]
MISREAD += [f"..{one}secret" for one in SLASHLIKE] + [f"a{one}..{one}secret" for one in SLASHLIKE]
MISREAD += ["%E2%80%A5/x", "%E2%80%A4./x", "..%E2%80%8B;v=1/x"]
MISREAD += ["?p=a%E2%88%95..%E2%80%8B%E2%88%95x"]
NAMES = ["caf%C3%A9.mp4", "m%FCller.mp4", "%E7%8C%AB.mp4", "%E7%8C%AB..mp4", "%F0%9F%98%80.mp4"]
NAMES += ["a%E2%88%95b.mp4", "e%CC%81.mp4", "%E7%8C%AB.%E7%8A%AC", ".%E7%8C%AB", "a%E2%80%A6b.mp4"]
NAMES += ["...a", "a..%FF", "%D0%AF.%D0%B0.mp4", "x%C2%A0y.mp4", "a%C2%AD.mp4", "-..-", "100%25"]


@pytest.mark.parametrize("again", [0, 1, 2])
def test_no_part_that_a_lenient_server_may_read_as_dots_is_sent(again: int) -> None:
    async def gate_of(prefix: str) -> _Gate:
        return _Gate([prefix])

    gate = asyncio.run(gate_of("https://h/videos"))

    def is_sent(path: str) -> bool:
        for _ in range(again):
            path = path.replace("%", "%25")
        return gate._is_below(URL(f"https://h/videos/{path}", encoded=True))

    assert [path for path in MISREAD if is_sent(path)] == []
    assert [path for path in NAMES if not is_sent(path)] == []


def address_of_this_machine() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unsent, suppress(OSError):
        unsent.connect(("192.0.2.1", 9))
        return str(unsent.getsockname()[0])
    return "127.0.0.1"


LOCAL = ["localhost", "127.0.0.1", "127.9.9.9", "0.0.0.0", "[::]", "[::1]", "127.1", "0x7f000001"]
LOCAL += ["2130706433", "017700000001", "0177.0.0.1", "[::ffff:127.0.0.1]", "[::127.0.0.1]", "0"]
LOCAL += ["localhost.", "LocalHost", "\uff11\uff12\uff17.0.0.1", "127\u30020.0.1"]
LOCAL += [address_of_this_machine(), f"[::ffff:{address_of_this_machine()}]", "me@127.0.0.1"]
CLOUD = ["169.254.169.254", "169.254.170.2", "[fd00:ec2::254]", "100.100.100.200", "0xa9fea9fe"]
CLOUD += ["metadata.google.internal", "Metadata.Google.Internal.", "[::ffff:a9fe:a9fe]"]
CLOUD += ["[64:ff9b::a9fe:a9fe]", "[2002:7f00:1::]", "169.254.169.254.", "2852039166"]
CLOUD += ["[fe80::1]", "168.63.129.16", "[::ffff:100.100.100.200]"]


@pytest.mark.parametrize("host", [*LOCAL, *CLOUD])
def test_a_row_reaches_this_machine_and_metadata_services_only_if_a_prefix_names_them(
    host: str, servers: tuple[Server, Server]
) -> None:
    _, other = servers
    place = f"http://{host}:{other.server_port}"
    assert fetch(f"{place}/a.mp4") == "access_denied"
    assert fetch(f"{place}/a.mp4", "http://") == "access_denied"
    assert heard(other) == []
    if host in ("localhost", "127.0.0.1", "[::1]"):
        assert fetch(f"{place}/v/a.mp4", f"{place}/v") == ""
        assert fetch(f"{place}/a.mp4", written=True) == ""
        assert fetch(f"{place}/a.mp4", f"{place}/v") == "access_denied"
        assert set(heard(other)) == {"/v/a.mp4", "/a.mp4"}


@pytest.mark.parametrize("written", [False, True])
def test_each_redirect_is_checked(written: bool, servers: tuple[Server, Server]) -> None:
    server, other = servers
    place = f"http://127.0.0.1:{server.server_port}"
    handler, prefix = server.RequestHandlerClass, f"{place}/videos"
    hidden = [f"http://{host}:{other.server_port}/a.mp4" for host in (*LOCAL, *CLOUD)]
    hidden += [f"//localhost:{server.server_port}/a", f"https://127.0.0.1:{other.server_port}/"]
    hidden += ["file:///etc/passwd", "ftp://127.0.0.1/a", "gopher://127.0.0.1:9/"]
    if not written:
        hidden += ["/a.mp4", "../../../a.mp4", "/videos/..%2fa.mp4", "/videosx/a.mp4"]
        hidden += [f"{place}/videos/%252e%252e/a.mp4", f"{place}/a.mp4", "..\\..\\a.mp4"]
    tried = [(302, target) for target in hidden]
    tried += [(status, hidden[0]) for status in (301, 303, 307, 308)]
    for status, handler.target in tried:  # type: ignore[attr-defined]
        found = fetch(f"{prefix}/redirect/{status}", prefix, written=written)
        assert found != "", (status, handler.target)  # type: ignore[attr-defined]
    assert {path.rpartition("/")[0] for path in heard(server)} == {"/videos/redirect"}
    assert heard(other) == []
    handler.target = "../b.mp4"  # type: ignore[attr-defined]
    assert fetch(f"{prefix}/redirect/302", prefix, written=written) == ""


def test_a_name_is_judged_by_the_address_that_is_connected_to(
    servers: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, other = servers
    resolve = socket.getaddrinfo

    def answers(host: object, *args: object, **kwargs: object) -> object:
        assert host == "videos.test"
        return resolve("127.0.0.1", *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", answers)
    place = f"http://videos.test:{other.server_port}"
    assert fetch(f"{place}/a.mp4") == "access_denied"
    # Its owner decides where it leads.
    assert fetch(f"{place}/a.mp4", place, "/v", "s3://") == "access_denied"
    assert (
        fetch(f"{place}/a.mp4", place, f"http://127.0.0.1:{other.server_port}") == "access_denied"
    )
    assert heard(other) == []
    assert fetch(f"{place}/a.mp4", written=True) == ""
    assert fetch(f"{place}/b.mp4") == "access_denied"  # also once a connection is open
    assert set(heard(other)) == {"/a.mp4"}


@pytest.mark.parametrize("address", ["93.184.216.34", "10.0.0.5", "2606:2800::1", "64:ff9b::1"])
def test_other_addresses_are_allowed(address: str) -> None:
    async def check() -> None:
        _Gate(["http://", "https://"])._check_address("videos.test", 80, address)

    asyncio.run(check())


ROW = {"row_id": "0", "source_uri": "http://h/a", "archive_uri": "http://h/t.tar"}
TABLE = {"kind": "table", "uri": "http://h/t.csv", "uri_column": "u"}


@pytest.mark.parametrize(
    ("source", "row", "allowed"),
    [
        ({"kind": "files", "uri": "http://h/a"}, ["row_id", "source_uri"], None),
        ({"kind": "webdataset", "uri": "http://h/t.tar"}, list(ROW), None),
        (TABLE, ["row_id", "source_uri"], ()),
        ({**TABLE, "allowed_prefixes": ("http://h",)}, ["row_id", "source_uri"], ("http://h",)),
        ({**TABLE, "allowed_prefixes": ("http://x",)}, list(ROW), None),  # videos in the table
        (None, list(ROW), ()),
    ],
)
def test_only_what_the_author_of_a_job_wrote_is_requested_wherever_it_is(
    source: dict[str, Any] | None, row: list[str], allowed: tuple[str, ...] | None
) -> None:
    config = None if source is None else TypeAdapter[Any](Source).validate_python(source)
    (item,) = items_of(pa.table({name: [ROW[name]] for name in row}), [0], config)
    assert item.allowed == allowed
    seen: list[WorkItem] = []
    both: Any = object.__new__(SideBySide)  # without its tokenizer and its decoding process
    both._opened = SimpleNamespace(items=lambda _: [item]), SimpleNamespace(process=seen.extend)
    clip: Any = SimpleNamespace(plan_row=0, segment=0, num_segments=1)
    for is_own in (False, True):
        both._output = SimpleNamespace(trust=SimpleNamespace(sources=is_own))
        with pytest.raises(TypeError):  # nothing was decoded
            next(both.decoded(clip))
    # Whose output is compared may be anyone's, unless the caller's own job file is named.
    assert [one.allowed for one in seen] == [(), allowed]
