"""Calls to one fsspec file system, with time limits, one layer of retries and tokpipe's errors."""

import asyncio
import contextlib
import functools
import inspect
import json
import os
import re
import socket
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.asyn import sync

from tokpipe.config.job import StoreOptions
from tokpipe.errors import AccessDenied, Changed, ConfigError, NotFound, StorageError, TokpipeError
from tokpipe.identity import version_of
from tokpipe.storage.hub import pinned_name
from tokpipe.storage.retry import GaveUp, RetryPolicy
from tokpipe.storage.trouble import Trouble, classify, retry_after_s
from tokpipe.telemetry.redact import redact

T = TypeVar("T")
_Ask = Callable[..., Coroutine[Any, Any, Any]]

MULTIPART_BYTES = 16 * 2**20
"""Larger objects are uploaded in parts of half this size. S3 requires parts of 5 MiB or more."""

_WEB = ("http", "https")
ALLOWED: ContextVar[tuple[str, ...] | None] = ContextVar("ALLOWED", default=None)
"""``WorkItem.allowed`` of what is fetched; by default the job's author wrote its URI."""

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")


class AlreadyExists(StorageError):
    """An exclusive create found an object. Never leaves ``storage``."""


@dataclass(frozen=True)
class ObjectInfo:
    """What a store says about one object."""

    size: int | None  # Size in bytes, or None if an HTTP server does not say
    version: str  # An ETag, a generation or a time of the store's; changes with the content
    inode: int = 0  # On local disk. Not part of the version, because it may differ between nodes

    @property
    def source_version(self) -> int:
        """What a plan stores to identify the content."""
        return version_of(self.size, self.version)


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object in a listing."""

    key: str
    size_bytes: int
    modified_s: float  # Time of the last write, in seconds since 1970 by the store's clock
    version: int | None = None  # Identifies the content, as ``ObjectInfo.source_version`` does


def split_protocol(uri: str) -> tuple[str, str]:
    """Return (protocol, rest) of a URI. For paths and ``file://`` that is ("file", path)."""
    if not (match := _SCHEME.match(uri)):
        return "file", uri
    protocol = match.group(1).lower()
    return ("file", uri[match.end() :]) if protocol in ("file", "local") else (protocol, uri)


def client_of(uri: str, options: StoreOptions) -> "Client":
    """Return this process's client for a URI, creating it on first use. There is one per process,
    as a fork loses the connections' thread, and per cloud credentials."""
    protocol, _ = split_protocol(uri)
    prefixes = ("AWS_", "AZURE_", "GOOGLE_", "HF_")
    environment = sorted(item for item in os.environ.items() if item[0].startswith(prefixes))
    allowed = ALLOWED.get() if protocol in _WEB else ()  # other URIs do not name servers
    if protocol in _WEB and not allowed:
        server = "/".join(uri.split("/")[:3])
        allowed = ("http://", "https://", *([server] if allowed is None else []))
    chosen = json.dumps([options.options_of(uri), options.deadline_s, allowed])
    return _client(protocol, chosen, os.getpid(), tuple(environment))


@functools.lru_cache(maxsize=32)
def _client(
    protocol: str, chosen_json: str, pid: int, environment: tuple[tuple[str, str], ...]
) -> "Client":
    return Client(protocol, *json.loads(chosen_json))


class Client:
    """One fsspec file system, called through one retry layer. Calls raise ``NotFound``,
    ``AccessDenied`` and, for permanent errors (bad credentials, a full disk), ``StorageError`` at
    once; for all other errors, ``StorageError`` after the deadline."""

    def __init__(
        self, protocol: str, options: dict[str, Any], deadline_s: float, allowed: Sequence[str]
    ) -> None:
        self.protocol = protocol
        self.is_local = protocol == "file"
        self.is_s3 = protocol in ("s3", "s3a")
        self.is_hub = protocol == "hf"
        self.commits: dict[Any, str] = {}  # Of the Hub's repositories and their branches
        self.can_list = protocol not in _WEB
        self.retry = RetryPolicy(deadline_s)
        self.fs = _open_filesystem(protocol, options, deadline_s)
        if not self.can_list:
            from tokpipe.storage.gate import get_client

            self.fs.get_client = functools.partial(get_client, allowed)

    def path_of(self, uri: str) -> str:
        """Return the file system's own name for a URI, without a trailing slash."""
        if self.is_local:
            return split_protocol(uri)[1].rstrip("/") or "/"
        return pinned_name(self, uri) if self.is_hub else str(self.fs._strip_protocol(uri))

    def uri_of(self, path: str) -> str:
        """Return the URI for a file system's own name."""
        if self.is_local or _SCHEME.match(path):
            return path
        # Not unstrip_protocol(), which writes the protocol's first alias.
        return f"{self.protocol}://{path}"

    def call(self, doing: str, uri: str, ask: str | _Ask, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the file system, or a function that takes it first, with retries.
        ``doing`` is for error messages."""
        if self.is_hub and ask in ("info", "find") and args[0].startswith("buckets/"):
            kwargs["refresh"] = True  # else listings are kept, but buckets change
        if isinstance(ask, str):
            method = getattr(self.fs, f"_{ask}" if self.fs.async_impl else ask)
        else:
            method = functools.partial(ask, self.fs)

        def attempt(timeout_s: float) -> Any:
            request = method(*args, **kwargs)
            if not inspect.iscoroutine(request):
                return request
            # Cancels a request that hangs; the timeout of sync() itself only stops waiting.
            return sync(self.fs.loop, asyncio.wait_for, request, timeout_s)

        return self.run(doing, uri, attempt)

    def run(self, doing: str, uri: str, attempt: Callable[[float], T]) -> T:
        """Run ``attempt(timeout_s)`` with retries, and translate its last error."""
        try:
            may_pass = Trouble.TRANSIENT, Trouble.NODE
            return self.retry.run(attempt, lambda e: classify(e) in may_pass, retry_after_s)
        except GaveUp as gave_up:
            raise StorageError(
                f"{redact(uri)}: {doing} kept failing ({gave_up}); the last error was "
                f"{_describe(gave_up.__cause__)}. The store is unreachable or overloaded: check "
                "it, then start the job again. storage.deadline_s sets how long to retry."
            ) from gave_up.__cause__
        except Exception as error:
            if (trouble := classify(error)) is Trouble.FOREIGN:
                raise
            raise _translated(doing, uri, error, trouble) from error

    def info(self, uri: str) -> ObjectInfo:
        """Look up one object; a folder is ``NotFound``."""
        try:
            return self._look_up(uri)
        except StorageError as error:
            if classify(error.__cause__ or error) not in (Trouble.DENIED, Trouble.PERMANENT):
                raise
            # A HEAD has no body to say whether 403 or 400 is about the object or the credentials.
            self.read(uri, 0, 1)
            return self._look_up(uri)

    def _look_up(self, uri: str) -> ObjectInfo:
        path = self.path_of(uri)
        if self.is_local:  # else the times would be those of a link
            path = os.path.realpath(path)
        found = None if self.can_list else self.call("looking it up", uri, _head, path)
        found = found or self.call("looking it up", uri, "info", path)
        if found.get("type", "file") != "file":  # opening a pipe would wait for its writer
            raise NotFound(f"{redact(uri)}: is a folder or a device, not an object")
        return _info(found, found.get("size"))

    def read(self, uri: str, start: int = 0, end: int | None = None) -> bytes:
        """Return an object, or its bytes ``start`` to ``end`` (exclusive) as far as it has them."""
        if end is not None:
            if self.is_local:  # Python takes the memory before it reads
                with contextlib.suppress(OSError):
                    end = min(end, Path(self.path_of(uri)).stat().st_size)
            if start >= end:
                return b""
        data, _ = self._read(uri, start, end)
        # An HTTP server may ignore the range and send everything.
        return data if end is None or len(data) <= end - start else data[start:end]

    def read_version(self, uri: str, start: int, end: int, version: ObjectInfo) -> bytes:
        """Return bytes ``start`` to ``end`` (exclusive), which must exist, of a known version, or
        everything if an HTTP server ignores the range; ``Changed`` if that version is gone."""
        with contextlib.suppress(NotFound):
            data, found = self._read(uri, start, end)
            # Other stores must be asked; afterwards, because the object may change meanwhile.
            if (found or self.info(uri)) == version and len(data) >= end - start:
                return data
        raise Changed(
            f"{redact(uri)}: was replaced, cut short or deleted while it was read, so what was "
            "read would mix two versions. Wait until its writer has finished, then run again"
        )

    def _read(self, uri: str, start: int, end: int | None) -> tuple[bytes, ObjectInfo | None]:
        """Return an object or a range of it, and of which version, if the answer says so."""
        path, doing = self.path_of(uri), "reading it"
        limits: dict[str, Any] = {}
        if end is not None:
            doing, limits = f"reading bytes {start} to {end}", {"start": start, "end": end}
            limits |= {"cache_type": "none"} if self.is_hub else {}  # else it reads 5 MB ahead
        ask = _read_s3 if self.is_s3 else "cat_file" if self.can_list else _read_http
        try:
            answer = self.call(doing, uri, ask, path, **limits)
        except StorageError as error:
            if classify(error.__cause__ or error) is not Trouble.BAD_RANGE:
                raise
            return b"", None
        return answer if isinstance(answer, tuple) else (bytes(answer), None)

    def iter_objects(self, folder_uri: str, prefix: str = "") -> Iterator[StoredObject]:
        """Yield objects whose names in a folder start with ``prefix``; keys are of ``path_of``."""
        folder = self.path_of(folder_uri)
        if self.is_s3:
            yield from self._iter_s3(folder_uri, folder, prefix)
            return
        if self.is_local:
            yield from _iter_local(folder, prefix)
            return
        try:
            found = self.call("listing it", folder_uri, "find", folder, detail=True)
        except NotFound:
            return
        start = len(folder.rstrip("/")) + 1
        for path, info in found.items():
            if info["type"] == "file" and path[start:].startswith(prefix):
                yield _listed(path, info, info["size"])

    def _iter_s3(self, folder_uri: str, folder: str, prefix: str) -> Iterator[StoredObject]:
        # Page by page: s3fs's find() holds all objects in memory, about 1 KB each.
        bucket, key, _ = self.fs.split_path(folder)
        start = f"{key.rstrip('/')}/{prefix}" if key else prefix
        request = {"Bucket": bucket, "Prefix": start}
        while True:
            page = self.call("listing it", folder_uri, _list_s3, **request)
            for entry in page.get("Contents", ()):
                if not entry["Key"].endswith("/"):  # S3 consoles create these for empty folders
                    yield _listed(f"{bucket}/{entry['Key']}", entry, entry["Size"])
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]


async def _list_s3(fs: Any, **request: str) -> dict[str, Any]:
    return _checked(await fs._call_s3("list_objects_v2", **request), "IsTruncated")


async def _read_s3(
    fs: Any, path: str, start: int = 0, end: int | None = None
) -> tuple[bytes, ObjectInfo]:
    bucket, key, version_id = fs.split_path(path)
    limits = {"VersionId": version_id} if version_id else {}
    if end is not None:
        limits["Range"] = f"bytes={start}-{end - 1}"
    answer = await fs._call_s3("get_object", Bucket=bucket, Key=key, **limits)
    try:
        length = str(_checked(answer, "ETag")["ContentLength"])
        size = answer.get("ContentRange", length).rpartition("/")[2]  # of "bytes 0-9/100"
        return await answer["Body"].read(), _info(answer, size)
    finally:
        answer["Body"].close()


def _checked(answer: dict[str, Any], key: str) -> dict[str, Any]:
    """Return an answer, or raise a transient error if it has status 200 and nothing else."""
    if key not in answer:
        raise OSError(f"the store's answer is empty: it has no {key}")
    return answer


async def _read_http(
    fs: Any, url: str, start: int = 0, end: int | None = None
) -> tuple[bytes, ObjectInfo]:
    session = await fs.set_session()
    headers = {**fs.kwargs.get("headers", {}), "Accept-Encoding": "identity"}
    if end is not None:
        headers["Range"] = f"bytes={start}-{end - 1}"
    async with session.get(fs.encode_url(url), **{**fs.kwargs, "headers": headers}) as answer:
        answer.raise_for_status()
        data = await answer.read()
        size, extent = str(len(data)), f"bytes {start}-{start + len(data) - 1}/"
        if answer.status == 206:
            size = answer.headers.get("Content-Range", "").removeprefix(extent)
        return data, _info(answer.headers, size if size.isdigit() else None)


async def _head(fs: Any, url: str) -> dict[str, Any] | None:
    """Ask a web server with HEAD. fsspec would go on to GET, even if asked to come back later."""
    from fsspec.implementations.http import _file_info

    try:
        found = await _file_info(fs.encode_url(url), await fs.set_session(), **fs.kwargs)
    except Exception as error:
        if classify(error) is Trouble.TRANSIENT or isinstance(error, AccessDenied):
            raise
        return None
    return found if "size" in found else None


def _iter_local(folder: str, prefix: str) -> Iterator[StoredObject]:
    # fsspec's find() fails if a file disappears meanwhile.
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)  # noqa: PTH118 (hot, and str is what is yielded)
            if path[len(folder.rstrip("/")) + 1 :].startswith(prefix):
                with contextlib.suppress(FileNotFoundError):
                    status = os.stat(path)  # noqa: PTH116
                    yield StoredObject(path, status.st_size, status.st_mtime)


def _info(found: Mapping[str, Any], size: str | int | None) -> ObjectInfo:
    keys = ("ETag", "etag", "generation", "blob_id", "mtime", "LastModified", "Last-Modified")
    # Azure has its ETags in quotes only if they are headers.
    versions = filter(None, map(found.get, (*keys, "updated", "created")))
    version = str(next(versions, "")).strip('"')
    return ObjectInfo(None if size is None else int(size), version, found.get("ino", 0))


def _listed(path: str, found: Mapping[str, Any], size: int) -> StoredObject:
    keys = ("mtime", "LastModified", "last_modified", "updated", "created")
    moment = next(filter(None, map(found.get, keys)), None)
    if isinstance(moment, str):
        with contextlib.suppress(ValueError):
            moment = datetime.fromisoformat(moment)
    # Now, to be safe, if the store does not say.
    modified_s = moment.timestamp() if isinstance(moment, datetime) else time.time()
    return StoredObject(path, int(size), modified_s, _info(found, size).source_version)


def _open_filesystem(protocol: str, options: dict[str, Any], deadline_s: float) -> Any:
    chosen = dict(options)
    if protocol in ("s3", "s3a"):
        chosen["config_kwargs"] = {
            "connect_timeout": min(5.0, deadline_s / 4),
            # Between two bytes; short enough to leave time for another attempt.
            "read_timeout": min(20.0, deadline_s / 4),
            "max_pool_connections": 64,
            **chosen.get("config_kwargs", {}),
            "retries": {"mode": "standard", "total_max_attempts": 1},
        }
    try:
        # Cached listings would hide new objects, and a cached instance may have other credentials.
        uncached = {"skip_instance_cache": True, "use_listings_cache": False}
        fs = fsspec.filesystem(protocol, **uncached, **chosen)
        fs._strip_protocol(f"{protocol}://x")  # generic:// fails here
        if protocol in ("s3", "s3a"):
            fs.retries = 1  # attempts, despite the name
            fs.connect()  # sends no request, but raises for misspelled options
    except ImportError as error:
        extra = f": pip install 'tokpipe[{protocol[:2]}]'" * (protocol in ("s3", "s3a", "hf"))
        raise ConfigError(
            f"{protocol}:// needs a package that is not installed on {socket.gethostname()} "
            f"({error}). Install it on every node{extra}"
        ) from error
    # zip:// and others open a file here
    except (AttributeError, OSError, RecursionError, TypeError, ValueError) as error:
        found = f"{protocol}:// cannot be opened with storage.options.{protocol} ({error})"
        raise ConfigError(found) from error
    return fs


def _translated(doing: str, uri: str, error: Exception, trouble: Trouble) -> TokpipeError:
    what = _describe(error)
    if "OfflineModeIsEnabled" in (type(error).__name__, type(error.__cause__).__name__):
        found = f"{redact(uri)}: is not in this machine's cache, and HF_HUB_OFFLINE is set"
        do = "Run `hf download` where there is a network, or unset the variable"
        return ConfigError(f"{found}. {do}")
    meanings: dict[Trouble, tuple[type[StorageError], str]] = {
        Trouble.NOT_FOUND: (NotFound, f"does not exist ({what})"),
        Trouble.EXISTS: (AlreadyExists, f"already exists ({what})"),
        Trouble.DENIED: (
            AccessDenied,
            f"{doing} was denied ({what}). The store is reachable, but these credentials may not "
            "access this object: grant them access",
        ),
        Trouble.CREDENTIALS: (
            StorageError,
            f"{doing} failed, because the store does not accept the credentials ({what}). Renew "
            "them in the environment (HF_TOKEN for hf://, after accepting a gated repository's "
            "conditions) or the instance role, then run again. A wrong clock can also cause this",
        ),
    }
    hopeless = f"{doing} failed ({what}), and trying again would not help: fix the cause, then run"
    kind, text = meanings.get(trouble, (StorageError, f"{hopeless} again"))
    return kind(f"{redact(uri)}: {text}")


def _describe(error: BaseException | None) -> str:
    # Libraries quote the requested URL, including its signature.
    return redact(" ".join(f"{type(error).__name__}: {error}".split()))
