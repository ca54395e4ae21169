"""Calls to one fsspec file system: bounded in time, retried once over, errors in our own terms."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import fsspec
from fsspec.asyn import sync

from tokpipe.config.job import StoreOptions
from tokpipe.errors import AccessDenied, ConfigError, NotFound, StorageError
from tokpipe.storage.retry import GaveUp, RetryPolicy
from tokpipe.storage.trouble import Trouble, classify
from tokpipe.telemetry.redact import redact

MULTIPART_BYTES = 16 * 2**20
"""Objects of this size and more are put in parts of half of it (S3 allows 5 MiB and more)."""

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_LOCAL_PROTOCOLS = ("file", "local")


class Refused(StorageError):
    """An exclusive create met an object. Inside ``storage`` only: ``create`` returns False."""


class BadRange(StorageError):
    """A range starts beyond the object's end. Inside ``storage`` only."""


@dataclass(frozen=True)
class ObjectInfo:
    """One object as its store describes it."""

    size: int | None
    """Bytes; None where an HTTP server does not say."""
    version: str
    """Changes with the content, as far as the store tells: an ETag, a generation, a time."""
    takes_ranges: bool
    """False for an HTTP server that answers a range with the whole object."""


class Listed(NamedTuple):
    """One object as a listing shows it, by the file system's own name."""

    path: str
    size_bytes: int
    modified_s: float


def split_protocol(uri: str) -> tuple[str, str]:
    """Return (protocol, rest) of a URI; a path without scheme, or ``file://``, is ``file``."""
    match = _SCHEME.match(uri)
    if match is None:
        return "file", uri
    protocol = match.group(1).lower()
    if protocol in _LOCAL_PROTOCOLS:
        return "file", uri[match.end() :]
    return protocol, uri


def client_of(uri: str, options: StoreOptions) -> Client:
    """Return this process's client for a URI, made on first use.

    A client belongs to the process that made it (its connections live on a thread, which a
    fork loses) and to the credentials that the environment held.

    Raises:
        ConfigError: unknown protocol, missing package, or options that it does not take.
    """
    protocol, _ = split_protocol(uri)
    return _client(protocol, options.model_dump_json(), os.getpid(), _cloud_environment())


def _cloud_environment() -> tuple[tuple[str, str], ...]:
    prefixes = ("AWS_", "AZURE_", "GOOGLE_")
    return tuple(sorted(item for item in os.environ.items() if item[0].startswith(prefixes)))


@functools.lru_cache(maxsize=32)
def _client(
    protocol: str, options_json: str, pid: int, environment: tuple[tuple[str, str], ...]
) -> Client:
    return Client(protocol, StoreOptions.model_validate(json.loads(options_json)))


class Client:
    """One fsspec file system, called through one retry layer.

    Raises from every call: ``NotFound`` and ``AccessDenied`` at once; ``StorageError`` at once
    for what cannot succeed (bad credentials, a full disk) and else after the deadline.
    """

    def __init__(self, protocol: str, options: StoreOptions) -> None:
        self.protocol = protocol
        self.retry = RetryPolicy(options.deadline_s)
        self.fs = _open_filesystem(protocol, options)

    @property
    def is_local(self) -> bool:
        return self.protocol == "file"

    def path_of(self, uri: str) -> str:
        """The file system's own name for a URI, without trailing slash."""
        if self.is_local:
            return split_protocol(uri)[1].rstrip("/") or "/"
        return str(self.fs._strip_protocol(uri))

    def uri_of(self, path: str) -> str:
        """The URI of a file system's own name."""
        if self.is_local or _SCHEME.match(path):
            return path
        # unstrip_protocol() would write the protocol's first alias, not the one in use.
        return f"{self.protocol}://{path}"

    def call(self, doing: str, uri: str, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the file system by its public name; ``doing`` is for messages."""
        return self.run(doing, uri, functools.partial(self._attempt, method, args, kwargs))

    def run(self, doing: str, uri: str, attempt: Callable[[float], Any]) -> Any:
        """Run ``attempt(timeout_s)`` with retries, and raise what it ends with in our terms."""
        try:
            return self.retry.run(attempt, lambda error: classify(error) is Trouble.TRANSIENT)
        except GaveUp as gave_up:
            raise StorageError(
                f"{redact(uri)}: {doing} kept failing ({gave_up}); the last answer was "
                f"{_describe(gave_up.__cause__)}. The store is unreachable or overloaded: look "
                "at it, then start the job again; storage.deadline_s sets how long to try."
            ) from gave_up.__cause__
        except Exception as error:
            translated = _translate(doing, uri, error)
            if translated is None:
                raise
            raise translated from error

    def info(self, uri: str) -> ObjectInfo:
        """Describe one object.

        Raises:
            NotFound: there is none, or the name is a folder's.
        """
        try:
            return self._look_up(uri)
        except StorageError as error:
            if classify(error.__cause__ or error) not in (Trouble.DENIED, Trouble.PERMANENT):
                raise
            # The answer to a HEAD has no body, so a bare 403 or 400 does not say whether the
            # object is refused or the credentials have expired. The answer to a GET does.
            self.read_range(uri, 0, 1)
            return self._look_up(uri)

    def _look_up(self, uri: str) -> ObjectInfo:
        found = self.call("looking it up", uri, "info", self.path_of(uri))
        if found.get("type") == "directory":
            raise NotFound(f"{redact(uri)}: is a folder, not an object.")
        version = next(
            (found[key] for key in ("ETag", "etag", "generation", "mtime") if found.get(key)), ""
        )
        size = found.get("size")
        return ObjectInfo(
            size=None if size is None else int(size),
            version=str(version),
            takes_ranges=bool(found.get("partial", not self.protocol.startswith("http"))),
        )

    def read(self, uri: str) -> bytes:
        """Return one object whole."""
        # s3fs asks for the size first when it may read in parallel, and reads in parallel only
        # what is larger than 50 MB: one connection saves a request per object.
        single = {"max_concurrency": 1} if self.protocol in ("s3", "s3a") else {}
        return bytes(self.call("reading it", uri, "cat_file", self.path_of(uri), **single))

    def read_range(self, uri: str, start: int, end: int) -> bytes:
        """Return bytes ``start`` to ``end`` (exclusive), fewer where the object ends."""
        if start >= end:
            return b""
        try:
            data = bytes(
                self.call(
                    f"reading bytes {start} to {end}",
                    uri,
                    "cat_file",
                    self.path_of(uri),
                    start=start,
                    end=end,
                )
            )
        except BadRange:
            return b""
        # An HTTP server may ignore the range and send everything.
        return data if len(data) <= end - start else data[start:end]

    def read_exactly(self, uri: str, start: int, end: int) -> bytes:
        """Return bytes ``start`` to ``end``, which are known to be there; fewer is retried."""
        path = self.path_of(uri)

        def attempt(timeout_s: float) -> bytes:
            data = bytes(
                self._attempt("cat_file", (path,), {"start": start, "end": end}, timeout_s)
            )
            if len(data) < end - start:
                raise ConnectionError(f"got {len(data)} of {end - start} bytes")
            # An HTTP server may ignore the range and send everything.
            return data if len(data) == end - start else data[start:end]

        data: bytes = self.run(f"reading bytes {start} to {end}", uri, attempt)
        return data

    def iter_objects(self, folder_uri: str, prefix: str = "") -> Iterator[Listed]:
        """Yield each object below a folder whose name there starts with prefix.

        S3 is read page by page: ``find`` of s3fs would hold about 1 KB per object.
        """
        folder = self.path_of(folder_uri)
        if self.protocol in ("s3", "s3a"):
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
                yield Listed(path, int(info["size"]), _modified_s(info))

    def _iter_s3(self, folder_uri: str, folder: str, prefix: str) -> Iterator[Listed]:
        bucket, key, _ = self.fs.split_path(folder)
        request: dict[str, Any] = {
            "Bucket": bucket,
            "Prefix": f"{key.rstrip('/')}/{prefix}" if key else prefix,
        }
        while True:
            page = self.call("listing it", folder_uri, "call_s3", "list_objects_v2", **request)
            for entry in page.get("Contents", ()):
                if not entry["Key"].endswith("/"):  # what consoles create for an empty folder
                    yield Listed(
                        f"{bucket}/{entry['Key']}",
                        int(entry["Size"]),
                        entry["LastModified"].timestamp(),
                    )
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def _attempt(
        self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], timeout_s: float
    ) -> Any:
        coroutine = getattr(self.fs, f"_{method}", None) if self.fs.async_impl else None
        if not inspect.iscoroutinefunction(coroutine):
            return getattr(self.fs, method)(*args, **kwargs)

        async def bounded() -> Any:
            # Cancels what hangs: the timeout of fsspec's sync() only stops waiting for it.
            return await asyncio.wait_for(coroutine(*args, **kwargs), timeout_s)

        return sync(self.fs.loop, bounded)


def _iter_local(folder: str, prefix: str) -> Iterator[Listed]:
    # fsspec's find() fails whole when a file vanishes while it looks.
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)  # noqa: PTH118 (hot, and str is what is yielded)
            if path[len(folder.rstrip("/")) + 1 :].startswith(prefix):
                with contextlib.suppress(FileNotFoundError):
                    status = os.stat(path)  # noqa: PTH116
                    yield Listed(path, status.st_size, status.st_mtime)


def _modified_s(info: Mapping[str, Any]) -> float:
    """Seconds since 1970 of a listed object; now, the safe side, where no time is given."""
    for key in ("mtime", "LastModified", "last_modified", "updated", "created"):
        match info.get(key):
            case int() | float() as seconds:
                return float(seconds)
            case datetime() as moment:
                return moment.timestamp()
            case str() as text:
                with contextlib.suppress(ValueError):
                    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    return time.time()


def _open_filesystem(protocol: str, options: StoreOptions) -> Any:
    chosen = dict(options.options.get(protocol, {}))
    if protocol in ("s3", "s3a"):
        chosen["config_kwargs"] = {
            "connect_timeout": min(5.0, options.deadline_s / 4),
            # Between two bytes, so a black hole is noticed in time for another attempt.
            "read_timeout": min(20.0, options.deadline_s / 4),
            "max_pool_connections": 64,
            **chosen.get("config_kwargs", {}),
            "retries": {"mode": "standard", "total_max_attempts": 1},
        }
    try:
        fs = fsspec.filesystem(
            protocol,
            # A listing from before another process wrote would hide what it wrote, and an
            # instance from fsspec's own cache may have been made with other credentials.
            skip_instance_cache=True,
            use_listings_cache=False,
            **chosen,
        )
        if protocol in ("s3", "s3a"):
            fs.retries = 1  # attempts, of which 0 would mean none at all
            fs.connect()  # no request yet; only here do misspelled options show
    except ImportError as error:
        raise ConfigError(
            f"{protocol}:// needs a package that is not installed ({error}). "
            "Install it: pip install 'tokpipe[s3]' for S3."
        ) from error
    except (ValueError, OSError) as error:  # zip:// and its like open a file that nobody named
        raise ConfigError(
            f"{protocol}:// cannot be opened: {error}. Use a path, s3:// or another protocol "
            "that fsspec knows."
        ) from error
    except TypeError as error:
        raise ConfigError(
            f"storage.options.{protocol}: {error}. The keys are the arguments of fsspec's file "
            "system for this protocol."
        ) from error
    return fs


def _translate(doing: str, uri: str, error: Exception) -> StorageError | None:
    trouble = classify(error)
    if trouble is Trouble.FOREIGN:
        return None
    what, uri = _describe(error), redact(uri)
    if trouble is Trouble.NOT_FOUND:
        return NotFound(f"{uri}: does not exist ({what}).")
    if trouble is Trouble.DENIED:
        return AccessDenied(
            f"{uri}: {doing} was refused ({what}). The store is reachable and this object is not "
            "for these credentials: grant them access to it."
        )
    if trouble is Trouble.CREDENTIALS:
        return StorageError(
            f"{uri}: {doing} was refused, because the store does not accept the credentials "
            f"({what}). Nothing can be read or written with them: renew them in the environment "
            "or the instance role (a skewed clock also looks like this), then run again."
        )
    if trouble is Trouble.EXISTS:
        return Refused(f"{uri}: exists already ({what}).")
    if trouble is Trouble.BAD_RANGE:
        return BadRange(f"{uri}: {doing} is beyond its end ({what}).")
    return StorageError(
        f"{uri}: {doing} failed for good ({what}). Trying again would not help: fix the cause, "
        "then run again."
    )


def _describe(error: BaseException | None) -> str:
    # Libraries quote the URL that they asked for, signature and all.
    return redact(f"{type(error).__name__}: {error}")
