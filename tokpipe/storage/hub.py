"""Repositories of the Hugging Face Hub: what branches name, and files in this node's cache."""

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

_COMMIT = re.compile(r"[0-9a-f]{40}")
_REPOSITORY = re.compile(
    r"(?:models/)?(?!buckets/)((?:(dataset|space|kernel)s/)?([^/@]+/[^/@]+))"
    r"(?:@(refs/(?:convert/\w+|pr/\d+)|[^/]+))?(?=/|$)"
)
"""The beginning of a name, without ``hf://``: repository, its type and id, revision."""


def pinned_name(client: Any, uri: str, known: Callable[[], Mapping[str, str]] = dict) -> str:
    """Return ``HfFileSystem``'s name for a URI, with a commit in place of a branch or tag: that in
    ``known``, else what the branch named when ``client`` first used it."""
    name = str(client.fs._strip_protocol(uri))
    if not (found := _REPOSITORY.match(name)):
        return name  # of a bucket; or the request for it says what is wrong
    root, kind, repository, revision = found.groups()
    branch = commit = unquote(revision or "main")
    if not _COMMIT.fullmatch(branch):
        commit = known().get(root) or client.commits.get((root, branch), "")
    if not commit:
        ask = client.fs._api.resolve_revision
        where = {"repo_type": kind, "revision": branch}
        found_there = client.run("finding its commit", uri, lambda _: ask(repository, **where))
        commit = client.commits[root, branch] = found_there.resolved
    return f"{root}@{commit}{name[found.end() :]}"


def local_copy(client: Any, uri: str) -> str:
    """Return the path of a file of the Hub in this node's cache, and other URIs unchanged.
    Processes of a node that need it at the same time download it once."""
    if not client.is_hub or not (found := _REPOSITORY.match(name := client.path_of(uri))):
        return uri
    where = dict(zip(("repo_type", "repo_id", "revision"), found.groups()[1:], strict=True))
    get, file = client.fs._api.hf_hub_download, name[found.end() + 1 :]
    return str(client.run("downloading it", uri, lambda _: get(filename=file, **where)))
