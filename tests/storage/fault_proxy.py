"""An HTTP proxy that disturbs chosen requests on their way to a real S3 server."""

import contextlib
import http.client
import re
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from tokpipe.config.job import StoreOptions


@dataclass(frozen=True)
class Request:
    """What a fault is chosen by."""

    number: int  # of all requests, from 0
    method: str
    path: str  # with the query
    is_exclusive: bool  # it has ``If-None-Match``
    access_key: str = ""  # that it is signed with


class Fault(Enum):
    """Ways to disturb a request."""

    RESET = "the connection breaks before the server sees the request"
    LOSE_ANSWER = "the server acts on the request, but its answer is lost"
    HANG = "no answer ever comes"
    CUT_ANSWER = "the answer stops half way"
    EMPTY = "status 200 and nothing else"
    STALE = "the answer to the first request of this kind, however old"


@dataclass(frozen=True)
class Refusal:
    """An error that the proxy returns in place of the server."""

    status: int
    code: str

    def body(self) -> bytes:
        return (
            f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{self.code}</Code>'
            f"<Message>from the proxy</Message></Error>"
        ).encode()


@dataclass(frozen=True)
class Slow:
    """The true answer, late."""

    delay_s: float


Disturbance = Fault | Refusal | Slow
Answer = tuple[int, dict[str, str], bytes]
Decide = Callable[[Request], Disturbance | None]


class FaultProxy:
    """Forwards requests to ``target`` unless ``decide`` returns a fault. A context manager."""

    def __init__(self, target: str, decide: Decide = lambda _: None) -> None:
        self.target = urlsplit(target).netloc
        self.stopping = threading.Event()
        self.requests: list[Request] = []
        self._decide = decide
        self._first_answers: dict[tuple[str, ...], Answer] | None = None
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def options(self, deadline_s: float = 20.0) -> StoreOptions:
        """Options of a job whose stores are reached through this proxy."""
        endpoint = {"endpoint_url": self.endpoint}
        return StoreOptions(options={"s3": endpoint}, deadline_s=deadline_s)

    def disturb(self, decide: Decide) -> None:
        """Forget all requests, and use another rule from now on."""
        with self._lock:
            self._decide = decide
            self.requests = []

    def remember(self) -> None:
        """Keep the first answer to each request from now on, for ``Fault.STALE``."""
        self._first_answers = {}

    def first_answer(self, request: tuple[str, ...], answer: Answer) -> Answer:
        """Return what was answered first: ``answer`` itself, if it is the first."""
        if self._first_answers is None or request[0] not in ("GET", "HEAD"):
            return answer
        with self._lock:
            return self._first_answers.setdefault(request, answer)

    def fault_of(
        self, method: str, path: str, *, is_exclusive: bool, access_key: str = ""
    ) -> Disturbance | None:
        """Record a request and decide about it."""
        with self._lock:
            request = Request(len(self.requests), method, path, is_exclusive, access_key)
            self.requests.append(request)
        return self._decide(request)

    def __enter__(self) -> "FaultProxy":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that hang up are expected here


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy

    def log_message(self, format: str, *args: object) -> None:
        pass

    def serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        is_exclusive = "If-None-Match" in self.headers
        signed = re.search("Credential=([^/]+)/", self.headers.get("Authorization") or "")
        fault = self.proxy.fault_of(
            self.command,
            self.path,
            is_exclusive=is_exclusive,
            access_key=signed[1] if signed else "",
        )
        if isinstance(fault, Refusal):
            self._answer(fault.status, {"Content-Type": "application/xml"}, fault.body())
        elif fault is Fault.RESET:
            self._reset()
        elif fault is Fault.HANG:
            self.proxy.stopping.wait()
            self.close_connection = True
        else:
            if isinstance(fault, Slow):
                self.proxy.stopping.wait(fault.delay_s)
            answer = self._forward(body)
            request = (self.command, self.path, self.headers.get("Range") or "")
            first = self.proxy.first_answer(request, answer)
            status, headers, data = first if fault is Fault.STALE else answer
            if fault is Fault.EMPTY:
                status, headers, data = 200, {}, b""
            if fault is Fault.LOSE_ANSWER:
                self._reset()
            else:
                self._answer(status, headers, data, cut=fault is Fault.CUT_ANSWER)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = serve  # noqa: N815

    def _forward(self, body: bytes) -> Answer:
        connection = http.client.HTTPConnection(self.proxy.target, timeout=30)
        with contextlib.closing(connection) as server:
            server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection"):
                    server.putheader(name, value)  # the signature covers Host as it came
            server.endheaders(body or None)
            response = server.getresponse()
            return response.status, dict(response.getheaders()), response.read()

    def _answer(
        self, status: int, headers: Mapping[str, str], data: bytes, *, cut: bool = False
    ) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        # The answer to a HEAD request has the length of the body that it leaves out.
        length = headers.get("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self._reset()

    def _reset(self) -> None:
        self.wfile.flush()
        linger = struct.pack("ii", 1, 0)  # close with RST
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        self.connection.close()
