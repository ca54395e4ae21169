"""Where web requests may go: checked as each is sent, also at redirects, and again after DNS."""

import re
import socket
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any
from unicodedata import normalize
from urllib.parse import unquote

import aiohttp
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from tokpipe.errors import AccessDenied
from tokpipe.telemetry.redact import redact

_INTERNAL = (
    *("0.0.0.0/8", "127.0.0.0/8", "::/96", "169.254.0.0/16", "fe80::/10", "fd00:ec2::/32"),
    *("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:c1::/32", "fd20:ce::/32"),
    *("64:ff9b::7f00:0/104", "64:ff9b::a9fe:0/112", "2002:7f00::/24", "2002:a9fe::/32"),
)
"""This machine, and where clouds answer with its credentials and settings."""
_NAMES = {"localhost": "127.0.0.1", "metadata.google.internal": "169.254.169.254"}
_SLASHES = r"/\\\u2044\u2215\u2216\u27cb\u27cd\u2571\u2572\u29f5\u29f8\u29f9"
_UNCLEAR = re.compile(
    rf"(^|[{_SLASHES}=])([^!-~{_SLASHES}]*\.){{2,}}[^!-~{_SLASHES}]*([{_SLASHES};?#&]|$)"
    r"|[\x00-\x1f\x7f\udcc0\udcc1]|\udce0[\udc80-\udc9f]|\udcf0[\udc80-\udc8f]"
    r"|[\udcf8-\udcfd][\udc80-\udcbf]|%u[0-9A-Fa-f]{4}"
)
"""What a server may read as a part ``..``: with parameters, around or between what it drops (all
but printable ASCII), at lookalikes of a slash, or in invalid UTF-8 and escapes that some decode."""


async def get_client(prefixes: Iterable[str], **kwargs: Any) -> aiohttp.ClientSession:
    gate = _Gate(prefixes)
    connector = aiohttp.TCPConnector(resolver=gate)
    return aiohttp.ClientSession(connector=connector, middlewares=(gate.check,), **kwargs)


class _Gate(ThreadedResolver):
    def __init__(self, prefixes: Iterable[str]) -> None:
        super().__init__()
        self._prefixes = [URL(one) for one in prefixes if re.match(r"(?i)https?://", one)]
        self._is_open = not all(url.raw_host for url in self._prefixes)
        # Who owns a host in ``allowed_prefixes`` also decides what its name resolves to.
        named = (url for url in self._prefixes if self._is_open or _address(url.raw_host))
        self._trusted = {(url.raw_host, url.port) for url in named}

    async def check(self, request: Any, send: Any) -> Any:
        """Check a request, which may be that of a redirect, and send it."""
        url = request.url
        if not self._is_below(url):
            raise _denied(str(url), "is outside the allowed prefixes")
        if request.proxy:
            self._trusted.add((request.proxy.raw_host, request.proxy.port))
        if _address(url.raw_host):  # so it is not looked up
            self._check_address(url.raw_host, url.port, url.raw_host)
        return await send(request)

    async def resolve(self, host: str, port: int = 0, *args: Any, **kwargs: Any) -> Any:
        found = await super().resolve(host, port, *args, **kwargs)
        for one in found:
            self._check_address(host, port, one["host"])
        return found

    def _is_below(self, url: URL) -> bool:
        """Whether a request stays below a prefix, however its server reads the path."""
        path = decoded = url.raw_path_qs
        for _ in range(8):
            decoded = unquote(last := decoded, errors="surrogateescape")
        is_clear = len(path) < 2**14 and decoded == last  # normalizing takes quadratic time
        is_clear = is_clear and not _UNCLEAR.search(normalize("NFKC", decoded))
        return any(
            is_clear
            and prefix.origin() == url.origin()
            and f"{path}/".startswith(f"{prefix.raw_path_qs.rstrip('/')}/")
            # Without a host, as in ``https://``, a prefix allows everything.
            if prefix.raw_host
            else prefix.scheme == url.scheme
            for prefix in self._prefixes
        )

    def _check_address(self, host: str, port: int, text: str) -> None:
        address = _address(text)
        is_internal = any(address in ip_network(one) for one in _INTERNAL) if address else True
        # A host of ``allowed_prefixes`` may be one of several that also run the job.
        is_own = self._is_open and address is not None and _is_own(address)
        if (is_internal or is_own) and (host, port) not in self._trusted:
            found = "is this machine, or a service that tells it its credentials"
            raise _denied(f"{host}:{port} ({text})", found)


def _address(host: str | None) -> IPv4Address | IPv6Address | None:
    host = str(host).rstrip(".")
    with suppress(ValueError):
        address = ip_address(_NAMES.get(host, host))
        return getattr(address, "ipv4_mapped", None) or address
    with suppress(OSError):  # 127.1, 0x7f000001, 2130706433
        return IPv4Address(socket.inet_aton(host))
    return None


def _is_own(address: IPv4Address | IPv6Address) -> bool:
    """Whether this machine has an address: it can then send from there to there."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as unsent:
        unsent.connect((str(address), 9))
        return ip_address(unsent.getsockname()[0]) == address
    return False


def _denied(place: str, found: str) -> AccessDenied:
    return AccessDenied(
        f"{redact(place)}: {found}, so nothing is requested. If that is safe, name it in your job "
        "file (allowed_prefixes of a table, or uri of a source); to read an output, name that file"
    )
