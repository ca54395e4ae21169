"""A stand-in for the Hugging Face Hub on loopback, as huggingface_hub 2.4 speaks to it.

It keeps repositories as commits, answers as the Hub does, and can be told to fail. Large files
are redirected to another host name (``localhost``), as the Hub's are to a CDN, where no token may
be sent.
"""

import contextlib
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE_BYTES = 1024  # Files from this size on are in "LFS"
PAGE = 3  # Entries of a page of a listing

Files = Mapping[str, bytes]


@dataclass
class Repository:
    """Commits of a repository, by hash, and what its branches name."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    is_private: bool = False
    is_gated: bool = False

    def commit(self, files: Files, branch: str = "main") -> str:
        """Make a commit of all files, move a branch to it, and return its hash."""
        seen = repr((sorted(files), len(self.commits), branch))
        sha = hashlib.sha1(seen.encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.branches[branch] = sha
        return sha


@dataclass
class Failure:
    """What requests get whose path contains ``part``, so many times."""

    part: str
    status: int
    times: int
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Hub:
    """The stand-in: its repositories (``name`` or ``datasets/name``), buckets, and what it saw."""

    port: int = 0
    token: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    buckets: dict[str, dict[str, bytes]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    """``METHOD path`` of each, without its query."""
    num_sent: int = 0  # Bytes of files
    leaks: list[str] = field(default_factory=list)
    """Requests to the other host that had a token."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def storage(self) -> dict[str, Any]:
        """The ``storage`` section of a job that finds this server; a user sets HF_ENDPOINT."""
        return {"options": {"hf": {"endpoint": self.endpoint}}, "deadline_s": 30.0}

    def repository(self, name: str) -> Repository:
        return self.repositories.setdefault(name, Repository())

    def count(self, pattern: str) -> int:
        """The number of requests that a regular expression finds."""
        return sum(bool(re.search(pattern, one)) for one in self.requests)

    def content(self, sha256: str) -> bytes:
        every = [commit for one in self.repositories.values() for commit in one.commits.values()]
        files = [data for files in [*every, *self.buckets.values()] for data in files.values()]
        return next(data for data in files if hashlib.sha256(data).hexdigest() == sha256)


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    handler = type("OfThisHub", (_Handler,), {"hub": hub})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class _Answer(Exception):
    def __init__(self, status: int, code: str = "", **headers: str) -> None:
        super().__init__(status)
        self.status, self.headers = status, headers
        if code:
            self.headers["X-Error-Code"] = code


_API = re.compile(
    r"/api/(?:(model|dataset)s/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/(.*))?)?)$"
)
_BUCKET = re.compile(r"/api/buckets/([^/]+/[^/]+)(?:/(tree)(?:/(.*))?)?$")
_FILE = re.compile(r"/(?:(dataset)s/)?([^/]+/[^/]+)/resolve/([^/]+)/(.*)$")
_OF_BUCKET = re.compile(r"/buckets/([^/]+/[^/]+)/resolve/(.*)$")


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def serve(self) -> None:
        url = urlsplit(self.path)
        path = url.path
        if path != "/api/agent-harnesses":  # what the library tells servers about itself
            self.hub.requests.append(f"{self.command} {path}")
        try:
            for failure in self.hub.failures:
                if failure.part in path and failure.times > 0:
                    failure.times -= 1
                    raise _Answer(failure.status, **failure.headers)
            if path.startswith("/cdn/"):
                if "Authorization" in self.headers:
                    self.hub.leaks.append(path)
                self.content(self.hub.content(path.rpartition("/")[2]))
            elif found := _BUCKET.match(path):
                self.bucket(*found.groups())
            elif found := _API.match(path):
                self.api(parse_qs(url.query), *found.groups())
            elif found := _OF_BUCKET.match(path):
                files = self.hub.buckets[found[1]]
                if unquote(found[2]) not in files:
                    raise _Answer(404, "EntryNotFound")
                self.content(files[unquote(found[2])])
            elif found := _FILE.match(path):
                self.file(*found.groups())
            else:
                raise _Answer(404)
        except _Answer as answer:
            self.answer(answer.status, b"", answer.headers)

    do_GET = do_HEAD = do_POST = serve  # noqa: N815

    def answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, value: Any, **headers: str) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"} | headers)

    def content(self, data: bytes, **headers: str) -> None:
        status = 200
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(wanted[1]), int(wanted[2] or len(data) - 1)
            if start >= len(data):
                raise _Answer(416)
            size = len(data)
            data, status = data[start : end + 1], 206
            headers["Content-Range"] = f"bytes {start}-{start + len(data) - 1}/{size}"
        self.hub.num_sent += len(data) * (self.command != "HEAD")
        self.answer(status, data, headers)

    def may_read(self, repository: Repository) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}" or not (
            repository.is_private
        )

    def found(self, kind: str | None, name: str, revision: str) -> tuple[Repository, str]:
        repository = self.hub.repositories.get(f"datasets/{name}" if kind == "dataset" else name)
        if repository is None or not self.may_read(repository):
            raise _Answer(404 if self.headers.get("Authorization") else 401, "RepoNotFound")
        revision = unquote(revision)
        sha = repository.branches.get(revision, revision)
        if sha not in repository.commits:
            raise _Answer(404, "RevisionNotFound")
        return repository, sha

    def api(
        self,
        query: dict[str, list[str]],
        kind: str,
        name: str,
        verb: str | None,
        revision: str | None,
        path: str | None,
    ) -> None:
        repository, sha = self.found(kind, name, revision or "main")
        if verb != "tree":
            self.json({"id": name, "sha": sha, "private": repository.is_private, "siblings": []})
            return
        folder = unquote(path or "").rstrip("/")
        entries = _entries(repository.commits[sha], folder, query["recursive"] == ["true"])
        if folder and not entries:
            raise _Answer(404, "EntryNotFound")
        start = int(query.get("cursor", ["0"])[0])
        more: dict[str, str] = {}
        if start + PAGE < len(entries):
            after = f"recursive={query['recursive'][0]}&expand=false&cursor={start + PAGE}"
            here = f"{self.hub.endpoint}{urlsplit(self.path).path}?{after}"
            more["Link"] = f'<{here}>; rel="next"'
        self.json(entries[start : start + PAGE], **more)

    def bucket(self, name: str, verb: str | None, path: str | None) -> None:
        if name not in self.hub.buckets:
            raise _Answer(404, "RepoNotFound")
        time = "2026-11-30T00:00:00.000Z"
        if verb is None:
            owned = {"visibility": "public", "private": False, "createdAt": time}
            self.json({"id": name, "size": 0, "totalFiles": 0, **owned})
            return
        is_recursive = "recursive=true" in self.path
        entries = _entries(self.hub.buckets[name], unquote(path or "").rstrip("/"), is_recursive)
        times = {"mtime": time, "uploadedAt": time}
        self.json([{**one, **times, "xetHash": one["oid"]} for one in entries])

    def file(self, kind: str | None, name: str, revision: str, path: str) -> None:
        repository, sha = self.found(kind, name, revision)
        if repository.is_gated and not self.headers.get("Authorization"):
            raise _Answer(401, "GatedRepo")
        if repository.is_gated and self.headers["Authorization"] != f"Bearer {self.hub.token}":
            raise _Answer(403, "GatedRepo")
        if (data := repository.commits[sha].get(unquote(path))) is None:
            raise _Answer(404, "EntryNotFound", **{"X-Repo-Commit": sha})
        headers = {"X-Repo-Commit": sha, "ETag": f'"{_blob(data)}"'}
        if len(data) >= LARGE_BYTES:
            sha256 = hashlib.sha256(data).hexdigest()
            headers |= {
                "Location": f"http://localhost:{self.hub.port}/cdn/{sha256}?Signature=signed",
                "X-Linked-Size": str(len(data)),
                "X-Linked-ETag": f'"{sha256}"',
            }
            self.answer(302, b"", headers)
        else:
            self.content(data, **headers)


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entries(files: Files, folder: str, is_recursive: bool) -> list[dict[str, Any]]:
    below = f"{folder}/" if folder else ""
    entries: dict[str, dict[str, Any]] = {}
    for path, data in sorted(files.items()):
        if not path.startswith(below):
            continue
        parts = path[len(below) :].split("/")
        for depth in range(1, len(parts) if is_recursive else min(2, len(parts))):
            at = below + "/".join(parts[:depth])
            entries[at] = {"type": "directory", "path": at, "oid": _blob(at.encode()), "size": 0}
        if is_recursive or len(parts) == 1:
            entry = {"type": "file", "path": path, "oid": _blob(data), "size": len(data)}
            if len(data) >= LARGE_BYTES:
                of_data = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data)}
                entry["lfs"] = {**of_data, "pointerSize": 130}
            entries[path] = entry
    return list(entries.values())
