"""What each library's exceptions mean, and how a job's stores are told apart."""

import asyncio
import email.utils
import errno
import http.server
import json
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx2 as httpx
import pytest
import requests
import urllib3
from aiohttp.client_reqrep import ConnectionKey, RequestInfo
from botocore import exceptions as boto
from fsspec.registry import _registry
from google.auth import exceptions as google_auth
from huggingface_hub import HfFileSystem
from huggingface_hub import errors as hub
from huggingface_hub.utils._http import hf_raise_for_status
from yarl import URL

from tests.conftest import S3Bucket
from tests.s3_server import filesystem_of, fresh_bucket, running_s3_server
from tokpipe.config.job import StoreOptions
from tokpipe.errors import ConfigError, NodeTrouble, SourceError, StorageError
from tokpipe.storage import Store, fetch_to_file
from tokpipe.storage.client import client_of
from tokpipe.storage.trouble import Trouble, classify, retry_after_s

google: Any = google_auth
HUB = httpx.Request("GET", "https://huggingface.co/api/datasets/o/n")
PAGE = URL("https://host/a.mp4")
KEY = ConnectionKey("host", 443, True, True, None, None, None)


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def of_s3(status: int, code: str, **headers: str) -> Exception:
    metadata = {"HTTPStatusCode": status, "HTTPHeaders": headers}
    answer: Any = {"Error": {"Code": code}, "ResponseMetadata": metadata}
    return caused(OSError(errno.EINVAL, "x"), boto.ClientError(answer, "GetObject"))


def of_web(status: int, **headers: str) -> Exception:
    request: Any = RequestInfo(PAGE, "GET", {}, PAGE)  # type: ignore[arg-type]
    found: Any = headers
    error = aiohttp.ClientResponseError(request, (), status=status, headers=found)
    return caused(FileNotFoundError("https://host/a.mp4"), error)


def of_hub(status: int, **headers: str) -> Exception:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with pytest.raises(hub.HfHubHTTPError) as caught:
        hf_raise_for_status(httpx.Response(status, headers=named, request=HUB))
    return caught.value


def of_missing_library(name: str, **attributes: Any) -> Exception:
    """Return an exception like one of gcsfs or adlfs, neither of which tests need.

    Their classes and attributes are those of gcsfs 2026.10 and azure-core 1.41.
    """
    package, _, kind = name.rpartition(".")
    error: Exception = type(kind, (Exception,), {"__module__": package, **attributes})("x")
    return error


def of_azure(kind: str, status: int, code: str) -> Exception:
    name = f"azure.core.exceptions.{kind}"
    return of_missing_library(name, status_code=status, error_code=code, response=None)


def refused_hub() -> Exception:
    fs = HfFileSystem(endpoint="http://127.0.0.1:9", skip_instance_cache=True)
    with pytest.raises(httpx.ConnectError) as caught:
        fs.info("datasets/o/n/x.mp4")
    return caught.value


def refused_page(proxy: str | None = None) -> Exception:
    async def get() -> None:
        async with aiohttp.ClientSession() as session:
            await session.get("http://127.0.0.1:9/a.mp4", proxy=proxy)

    with pytest.raises(aiohttp.ClientError) as caught:
        asyncio.run(get())
    return caught.value


CERTIFICATE = ssl.SSLCertVerificationError(1, "certificate verify failed")
AZURE, HTTPX = "azure.core.exceptions", {"request": HUB}
EXAMPLES: dict[Trouble, list[Callable[[], Exception]]] = {
    Trouble.TRANSIENT: [
        *(lambda code=code: of_s3(400, code) for code in ("RequestTimeout", "Throttling")),
        *(lambda s=status: of_s3(s, "x") for status in (408, 409, 429, 500, 502, 503, 504)),
        *(lambda s=status: of_web(s) for status in (408, 425, 429, 500, 502, 503, 504)),
        *(lambda s=status: of_hub(s) for status in (429, 500, 502, 503)),
        lambda: boto.EndpointConnectionError(endpoint_url="http://h"),
        lambda: boto.ConnectTimeoutError(endpoint_url="http://h"),
        lambda: boto.ReadTimeoutError(endpoint_url="http://h"),
        lambda: boto.IncompleteReadError(actual_bytes=1, expected_bytes=2),
        lambda: boto.CredentialRetrievalError(provider="x", error_msg="y"),
        lambda: aiohttp.ServerDisconnectedError(),
        lambda: aiohttp.ClientPayloadError("cut"),
        lambda: aiohttp.ServerTimeoutError("late"),
        lambda: aiohttp.ClientConnectorDNSError(KEY, socket.gaierror(-3, "x")),
        lambda: aiohttp.http_exceptions.BadHttpMessage("x"),
        refused_page,
        refused_hub,
        lambda: httpx.ReadTimeout("x", **HTTPX),
        lambda: httpx.ProxyError("x", **HTTPX),
        lambda: httpx.RemoteProtocolError("x", **HTTPX),
        lambda: hub.LocalEntryNotFoundError("x"),
        lambda: requests.exceptions.ConnectionError("x"),
        lambda: requests.exceptions.ProxyError(),  # what gcsfs makes of the status 502
        lambda: urllib3.exceptions.MaxRetryError(None, "/"),  # type: ignore[arg-type]
        lambda: google.TransportError("x"),
        lambda: of_missing_library("gcsfs.retry.HttpError", code=429),
        lambda: of_missing_library("gcsfs.retry.ChecksumError"),
        lambda: of_azure("HttpResponseError", 503, "ServerBusy"),
        lambda: of_missing_library(f"{AZURE}.ServiceRequestError"),
        lambda: ssl.SSLError(1, "decryption failed"),
        lambda: socket.gaierror(-2, "Name or service not known"),
        lambda: ConnectionResetError(errno.ECONNRESET, "x"),
        *(lambda e=code: OSError(e, "x") for code in (errno.EIO, errno.ESTALE, errno.ENOTCONN)),
        lambda: TimeoutError(),
    ],
    Trouble.NODE: [
        *(lambda e=code: OSError(e, "x") for code in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)),
        lambda: caused(aiohttp.ClientOSError(24, "x"), OSError(errno.EMFILE, "x")),
        lambda: refused_page(proxy="http://127.0.0.1:9"),
        lambda: MemoryError(),
    ],
    Trouble.NOT_FOUND: [
        *(lambda code=code: of_s3(404, code) for code in ("NoSuchKey", "NoSuchBucket", "404")),
        *(lambda s=status: of_web(s) for status in (404, 410)),
        *(lambda c=c: of_hub(404, X_Error_Code=c) for c in ("RepoNotFound", "EntryNotFound")),
        lambda: of_azure("ResourceNotFoundError", 404, "BlobNotFound"),
        lambda: NotADirectoryError(errno.ENOTDIR, "x"),
    ],
    Trouble.DENIED: [
        lambda: of_s3(403, "AccessDenied"),
        lambda: of_web(403),
        lambda: of_azure("HttpResponseError", 403, "AuthorizationPermissionMismatch"),
        lambda: OSError("Forbidden: /b/o\nno access"),  # gcsfs
        lambda: PermissionError(errno.EACCES, "x"),
    ],
    Trouble.CREDENTIALS: [
        *(
            lambda code=code: of_s3(403, code)
            for code in ("ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch")
        ),
        lambda: of_s3(401, "Unauthorized"),
        lambda: of_web(401),
        lambda: of_hub(401),
        lambda: of_hub(401, X_Error_Message="Invalid credentials in Authorization header"),
        lambda: of_hub(403, X_Error_Code="GatedRepo"),
        lambda: boto.NoCredentialsError(),
        lambda: google.DefaultCredentialsError("x"),
        lambda: google.RefreshError("x"),
        lambda: of_missing_library("gcsfs.retry.HttpError", code=401),
        lambda: of_azure("ClientAuthenticationError", 403, "AuthenticationFailed"),
    ],
    Trouble.EXISTS: [
        lambda: of_s3(412, "PreconditionFailed"),
        lambda: caused(
            FileExistsError("x"), of_azure("ResourceExistsError", 409, "BlobAlreadyExists")
        ),
    ],
    Trouble.BAD_RANGE: [lambda: of_s3(416, "InvalidRange"), lambda: of_web(416)],
    Trouble.BAD_NAME: [
        lambda: of_s3(400, "InvalidBucketName"),
        lambda: boto.ParamValidationError(report="x"),
        lambda: aiohttp.InvalidURL("http://[h"),
        lambda: hub.HFValidationError("x"),
        lambda: NotImplementedError("x"),  # for hf:// alone
        lambda: OSError(errno.ENAMETOOLONG, "x"),
        lambda: UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates"),
    ],
    Trouble.PERMANENT: [
        lambda: of_s3(400, "InvalidRequest"),
        *(lambda s=status: of_web(s) for status in (302, 400, 405, 501)),
        lambda: of_hub(400),
        lambda: boto.ProfileNotFound(profile="x"),
        lambda: httpx.TooManyRedirects("x", **HTTPX),
        lambda: requests.exceptions.TooManyRedirects(),
        lambda: caused(aiohttp.ClientConnectorCertificateError(KEY, CERTIFICATE), CERTIFICATE),
        lambda: hub.OfflineModeIsEnabled("x"),
        lambda: ValueError("Bad Request: invalid"),  # gcsfs
        lambda: OSError(errno.ENOSPC, "x"),
    ],
    Trouble.FOREIGN: [lambda: KeyError("x"), lambda: TypeError("x"), lambda: ConfigError("x")],
}


@pytest.mark.parametrize("trouble", EXAMPLES)
def test_each_library_s_exceptions_have_one_meaning(trouble: Trouble) -> None:
    found = [(error, classify(error)) for error in (make() for make in EXAMPLES[trouble])]
    assert [one for one in found if one[1] is not trouble] == []


def test_a_store_that_asks_to_wait_says_how_long() -> None:
    later = email.utils.formatdate(time.time() + 3600, usegmt=True)
    errors = [of_s3(503, "SlowDown", **{"retry-after": "7"}), of_hub(429, Retry_After="7")]
    errors.append(of_web(429, **{"Retry-After": "7"}))
    assert [retry_after_s(error) for error in errors] == [7.0] * 3
    assert 3500 < retry_after_s(of_web(503, **{"Retry-After": later})) <= 3600
    for nothing in ("", "soon", "-5", "Thu, 01 Jan 1970 00:00:00 GMT"):
        assert retry_after_s(of_web(503, **{"Retry-After": nothing})) == 0


class Page(http.server.BaseHTTPRequestHandler):
    """Answers with the status in the path, and counts requests."""

    num_requests = 0

    def log_message(self, format: str, *args: object) -> None:
        pass

    def serve(self) -> None:
        Page.num_requests += 1
        self.send_response(int(self.path.split("/")[1]))
        self.send_header("Retry-After", "3600")
        self.send_header("Location", self.path)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD = serve  # noqa: N815


@pytest.fixture
def web() -> Iterator[str]:
    Page.num_requests = 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def rejected(uri: str) -> str:
    with pytest.raises(SourceError) as caught:
        fetch_to_file(uri, None, options=StoreOptions(deadline_s=20), max_bytes=1)
    return caught.value.reason


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_asks_to_wait_beyond_the_deadline_is_not_asked_again(
    web: str, status: int
) -> None:
    assert rejected(f"{web}/{status}/a.mp4") == "unreachable"
    assert Page.num_requests == 1


def test_redirects_that_never_end_and_pages_that_need_a_login_are_their_clips_own_trouble(
    web: str,
) -> None:
    assert rejected(f"{web}/302/a.mp4") == "unreachable"
    assert rejected(f"{web}/401/a.mp4") == "access_denied"


def test_trouble_of_a_node_or_of_a_whole_store_rejects_no_clip(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fetch(uri: str, **hub_options: str) -> None:
        options = StoreOptions(deadline_s=0.5, options={"hf": hub_options})
        fetch_to_file(uri, None, options=options, max_bytes=1)

    packages = {"gs": "gcsfs", "az": "adlfs", "sftp": "paramiko", "s3": "s3fs"}
    for protocol, package in {**packages, "hf": "huggingface_hub"}.items():
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)  # not installed here
            patch.delitem(_registry, protocol, raising=False)  # nor used before
            with pytest.raises(ConfigError) as caught:
                fetch(f"{protocol}://bkt/a.mp4")
        message = str(caught.value)
        assert f"{protocol}:// needs a package that is not installed on" in message
        assert package in message
        for extra in ("s3", "hf"):
            assert (f"tokpipe[{extra}]" in message) == (protocol == extra)
    with pytest.raises(StorageError, match="kept failing"):
        fetch("hf://datasets/o/n/x.mp4", endpoint="http://127.0.0.1:9")
    unmounted = OSError(errno.ENOTCONN, "Transport endpoint is not connected")
    monkeypatch.setattr(Path, "stat", lambda _: (_ for _ in ()).throw(unmounted))
    with pytest.raises(NodeTrouble, match="not connected"):
        fetch("/mnt/data/a.mp4")


@pytest.mark.s3
def test_a_public_bucket_and_one_s_own_store_are_used_in_one_job(
    s3_bucket: S3Bucket, tmp_path: Path
) -> None:
    with running_s3_server(tmp_path, is_public=True) as public:
        name = fresh_bucket(public)
        at_public = {"endpoint_url": public.endpoint}
        own, theirs = s3_bucket.uri, f"s3://{name}"
        prefixed = StoreOptions(options={theirs: {**at_public, "anon": True}})
        filesystem_of(public).pipe_file(f"{name}/v/a", b"theirs")
        Store(own, prefixed).put("a", b"own")
        assert Store(own, prefixed).get("a") == b"own"
        assert Store(f"{theirs}/v", prefixed).get("a") == b"theirs"


def test_the_longest_prefix_of_a_uri_decides_its_options() -> None:
    options = StoreOptions(
        options={"s3": {"a": 1}, "s3://b/x/": {"a": 2}, "s3://b": {"a": 3}, "gs": {"token": "anon"}}
    )
    chosen = {"s3://b/x/y": 2, "s3://b/x": 2, "s3://b/xy": 3, "s3://bb/x": 1, "S3://c": 1}
    assert {uri: options.options_of(uri)["a"] for uri in chosen} == chosen
    assert options.options_of("gs://b/x") == {"token": "anon"}
    assert options.options_of("/local/path") == {}
    assert json.loads(options.model_dump_json())["options"]["gs"] == {"token": "anon"}
    assert client_of("memory://a", options) is client_of("memory://b", options)
