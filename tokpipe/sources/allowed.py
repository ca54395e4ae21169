"""Which videos a table may name. Tables are data, often someone else's; job files are not."""

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
_PROTOCOL = r"^[A-Za-z][A-Za-z0-9+.-]*:/"
_SCHEME = r"^[A-Za-z][A-Za-z0-9+.-]*://"
_NOTHING = r"/(\.?/)+"  # Parts of a local path that mean nothing
_CHAIN = r"::.*:/"  # fsspec's ``simplecache::file:///etc/passwd``: one protocol inside another
_PARENT = r"(?i)(^|[/\\]|%(25)*(2f|5c))(\.|%(25)*2e){2}([/\\?#;]|%(25)*(2f|5c)|$)|[\x00-\x1f]"
"""A part ``..``, also as a web server may read it. It is rejected rather than resolved, because
links and redirects can change where it leads."""


class AllowedUris:
    """Decides which URIs of one table may be read.

    Without prefixes: plain remote protocols anywhere, and local files below the folder of a
    local table or of ``template_folder``, which the job's author wrote. With prefixes: what is at
    or below one of them, compared by whole path parts.
    """

    def __init__(
        self, table_uri: str, prefixes: Sequence[str] | None, template_folder: str = ""
    ) -> None:
        self._allows_remote = prefixes is None
        if prefixes is None:
            folders = (_plain(table_uri.rpartition("/")[0] + "/"), _plain(template_folder))
            self._exact: list[str] = []
            self._folders = [one for one in folders if one and not re.match(_PROTOCOL, one)]
        else:
            self._exact = self._folders = [_plain(prefix) for prefix in prefixes]

    def outside(self, uris: pa.Array) -> pa.Array:
        """Return for each absolute URI whether it is outside; null for null."""
        chained = pc.match_substring_regex(uris, _CHAIN)
        if self._allows_remote:
            # In the name of a remote object, ".." has no special meaning.
            is_remote = pc.match_substring_regex(uris, _REMOTE)
            # Most tables name only remote videos, and the rest costs several times as much.
            if pc.all(is_remote).as_py():
                return chained
        else:
            is_remote = pa.repeat(False, len(uris))
        has_scheme = pc.match_substring_regex(uris, _SCHEME)
        is_local = pc.or_(pc.match_substring_regex(uris, _LOCAL), pc.invert(has_scheme))
        paths = pc.replace_substring_regex(uris, _LOCAL, "")
        paths = pc.replace_substring_regex(paths, _NOTHING, "/")
        plain = pc.if_else(is_local, paths, uris)
        is_below = pc.is_in(plain, pa.array(self._exact, pa.string()))
        for folder in self._folders:
            is_below = pc.or_(is_below, pc.starts_with(plain, f"{folder}/"))
        is_below = pc.and_not(is_below, pc.match_substring_regex(uris, _PARENT))
        return pc.or_(chained, pc.invert(pc.or_(is_remote, is_below)))


def example_prefix(uri: str) -> str:
    """Return a prefix that would allow ``uri``: its folder."""
    path = _plain(uri).partition("?")[0]
    folder = path.rpartition("/")[0]
    return path if folder.endswith(":/") else folder or "/"


def _plain(uri: str) -> str:
    """Drop a trailing slash; for a local path also ``file://``, ``//`` and ``/./``."""
    if re.match(_LOCAL, uri) or not re.match(_SCHEME, uri):
        uri = re.sub(_NOTHING, "/", re.sub(_LOCAL, "", uri))
    return uri.rstrip("/")
