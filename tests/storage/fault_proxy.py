"""An HTTP proxy that spoils chosen requests on their way to a real S3 server."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Request:
    """What a fault is chosen by."""

    number: int
    """Counts all requests, from 0."""
    method: str
    path: str
    """With the query."""
    is_exclusive: bool
    """It bears ``If-None-Match``."""


class Fault(Enum):
    """Ways to spoil a request."""

    RESET = "the connection breaks before the server has seen it"
    LOSE_ANSWER = "the server acts on it, and its answer is lost"
    HANG = "nothing ever comes back"
    CUT_ANSWER = "the answer stops half way"


@dataclass(frozen=True)
class Refusal:
    """An error that the proxy answers in the server's place."""

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


Decide = Callable[[Request], "Fault | Refusal | Slow | None"]


class FaultProxy:
    """Forwards to ``target``, except for what ``decide`` says. Use as a context manager."""

    def __init__(self, target: str, decide: Decide = lambda _: None) -> None:
        self._decide = decide
        self.requests: list[Request] = []
        self._target = urlsplit(target)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def serve(self) -> None:
                proxy.serve(self)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = serve  # noqa: N815

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # clients that hang up are what this is about

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def spoil_by(self, decide: Decide) -> None:
        """Start over: forget the requests so far, and decide by another rule from now on."""
        with self._lock:
            self._decide = decide
            self.requests = []

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        with self._lock:
            request = Request(
                len(self.requests),
                handler.command,
                handler.path,
                "If-None-Match" in handler.headers,
            )
            self.requests.append(request)
        fault = self._decide(request)
        if isinstance(fault, Refusal):
            self._answer(handler, fault.status, {"Content-Type": "application/xml"}, fault.body())
        elif fault is Fault.RESET:
            _reset(handler)
        elif fault is Fault.HANG:
            self._stopping.wait()
            handler.close_connection = True
        elif isinstance(fault, Slow):
            self._stopping.wait(fault.delay_s)
            self._forward(handler, body, None)
        else:
            self._forward(handler, body, fault)

    def _forward(self, handler: BaseHTTPRequestHandler, body: bytes, fault: Fault | None) -> None:
        connection = http.client.HTTPConnection(self._target.netloc, timeout=30)
        with contextlib.closing(connection):
            connection.putrequest(
                handler.command, handler.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in handler.headers.items():
                if name.lower() not in ("expect", "connection"):
                    connection.putheader(name, value)  # the signature covers Host as it came
            connection.endheaders(body or None)
            response = connection.getresponse()
            data, headers = response.read(), dict(response.getheaders())
        if fault is Fault.LOSE_ANSWER:
            _reset(handler)
        elif fault is Fault.CUT_ANSWER:
            self._answer(handler, response.status, headers, data, cut=True)
        else:
            self._answer(handler, response.status, headers, data)

    def _answer(
        self,
        handler: BaseHTTPRequestHandler,
        status: int,
        headers: dict[str, str],
        data: bytes,
        *,
        cut: bool = False,
    ) -> None:
        handler.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                handler.send_header(name, value)
        # The length of what a HEAD request would have got stands in its answer.
        length = headers.get("Content-Length") if handler.command == "HEAD" else None
        handler.send_header("Content-Length", length or str(len(data)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            _reset(handler)


def _reset(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.flush()
    linger = struct.pack("ii", 1, 0)  # close with RST
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    handler.close_connection = True
    handler.connection.close()
