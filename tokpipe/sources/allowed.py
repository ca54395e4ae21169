"""Which videos a table may name. Tables are data, often someone else's; job files are not."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

REMOTE_PROTOCOLS = (
    *("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "http", "https", "hf", "oss"),
    *("oci", "memory"),
)
"""Allowed by default: none of them reaches a file on the node."""

_LOCAL = r"^(?i:file|local)://"
_REMOTE = rf"^(?i:{'|'.join(REMOTE_PROTOCOLS)})://"
_SCHEME = r"^[A-Za-z][A-Za-z0-9+.-]*://"
_CHAIN = r"::.*:/"
"""fsspec's ``simplecache::file:///etc/passwd``: one protocol inside another."""
_PARENT = r"(?i)(^|[/\\])(\.|%2e){2}([/\\?#]|$)"
"""A part ``..``, also as a web server may read it. It is rejected rather than resolved, because
links and redirects can change where it leads."""


class AllowedUris:
    """Decides which URIs of one table may be read.

    Without prefixes: plain remote protocols anywhere, and local files below the folder of a
    local table. With prefixes: what is at or below one of them, compared by whole path parts.
    """

    def __init__(self, table_uri: str, prefixes: Sequence[str] | None) -> None:
        self._prefixes = None if prefixes is None else [_plain(prefix) for prefix in prefixes]
        folder = _plain(table_uri.rpartition("/")[0] + "/")
        self._folder = None if re.match(_SCHEME, folder) else folder

    def outside(self, uris: pa.Array) -> pa.Array:
        """Return for each absolute URI whether it is outside; null for null."""
        if self._prefixes is None:
            allowed = pc.match_substring_regex(uris, _REMOTE)
            up = pa.scalar(False)
            # Most tables name only remote videos, and the rest costs several times as much.
            if pc.all(allowed).as_py() is False:
                is_local, paths = _local_paths(uris)
                if self._folder is not None:
                    below = pc.starts_with(paths, f"{self._folder}/")
                    allowed = pc.or_(allowed, pc.and_(is_local, below))
                # In the name of a remote object, ".." has no special meaning.
                up = pc.and_(is_local, pc.match_substring_regex(uris, _PARENT))
        else:
            is_local, paths = _local_paths(uris)
            plain = pc.if_else(is_local, paths, uris)
            allowed = pa.repeat(False, len(uris))
            for prefix in self._prefixes:
                at = pc.equal(plain, prefix)
                allowed = pc.or_(allowed, pc.or_(at, pc.starts_with(plain, f"{prefix}/")))
            up = pc.match_substring_regex(uris, _PARENT)
        chained = pc.match_substring_regex(uris, _CHAIN)
        return pc.or_(pc.invert(allowed), pc.or_(up, chained))


def _local_paths(uris: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Return for each URI whether it is a local file, and its plain path if it is."""
    has_scheme = pc.match_substring_regex(uris, _SCHEME)
    is_local = pc.or_(pc.match_substring_regex(uris, _LOCAL), pc.invert(has_scheme))
    paths = pc.replace_substring_regex(uris, _LOCAL, "")
    return is_local, pc.replace_substring_regex(paths, r"/(\.?/)+", "/")


def example_prefix(uri: str) -> str:
    """Return a prefix that would allow ``uri``: its folder."""
    path = _plain(uri).partition("?")[0]
    folder = path.rpartition("/")[0]
    return path if folder.endswith(":/") else folder or "/"


def _plain(uri: str) -> str:
    """Drop a trailing slash; for a local path also ``file://``, ``//`` and ``/./``."""
    if re.match(_LOCAL, uri) or not re.match(_SCHEME, uri):
        uri = re.sub(r"/(\.?/)+", "/", re.sub(_LOCAL, "", uri))
    return uri.rstrip("/")
