"""URIs of videos in tables, which are often someone else's: exactly as written, if allowed."""

import re
from collections.abc import Sequence
from string import Formatter
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

REMOTE_PROTOCOLS = (
    *("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "http", "https", "hf", "oss"),
    *("oci", "memory"),
)
"""Allowed by default: none of them reaches a file on the node."""

_LOCAL_SCHEME = r"^(?i:file|local)://"
_REMOTE = rf"^(?i:{'|'.join(REMOTE_PROTOCOLS)})://"
_BEFORE_PATH = r"^[A-Za-z][A-Za-z0-9+.-]*:/"
_SCHEME = r"^[A-Za-z][A-Za-z0-9+.-]*://"
_NOTHING = r"/(\.?/)+"  # Parts of a local path that mean nothing
_CHAIN = r"::.*:/"  # fsspec's ``simplecache::file:///etc/passwd``: one protocol inside another
_PARENT = r"(?i)(^|[/\\]|%(25)*(2f|5c))(\.|%(25)*2e){2}([/\\?#;]|%(25)*(2f|5c)|$)|[\x00-\x1f]"
"""A part ``..``, also as a web server may read it: rejected, since links decide where it leads."""

_BLANK = " \t\n\v\f\r\xa0\u2007\u200b\u200e\u202a\u202c\u202f\u2060\u3000\ufeff"
"""What spreadsheets and editors leave around a URI: blanks, also of no width."""
_ORDINARY = (
    rf"^((?:{'|'.join(REMOTE_PROTOCOLS)})://[^/\pC\pZ]|[^\pC\pZ\\:$~])"
    r"([^\pC\\:$]*[^\pC\pZ\\:$])?$"
)
"""Most URIs: nothing in them needs a closer look."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
_LOCAL = re.compile(r"(?i)(?:file|local):(?://)?(?=/(?!/))")
_PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/*)")
_WITH_HOST = {*REMOTE_PROTOCOLS, "file", "local"} - {"memory"}


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
            self._folders = [one for one in folders if one and not re.match(_BEFORE_PATH, one)]
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
        is_local = pc.or_(pc.match_substring_regex(uris, _LOCAL_SCHEME), pc.invert(has_scheme))
        paths = pc.replace_substring_regex(uris, _LOCAL_SCHEME, "")
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
    if re.match(_LOCAL_SCHEME, uri) or not re.match(_SCHEME, uri):
        uri = re.sub(_NOTHING, "/", re.sub(_LOCAL_SCHEME, "", uri))
    return uri.rstrip("/")


def exact_uris(texts: pa.Array, problems: dict[int, str]) -> pa.Array:
    """Return URIs without blanks around them, and with a protocol in lower case. Only in ``file:``
    URIs is ``%20`` decoded. What means another path than its author meant is null, and a problem
    of its row."""
    odd = pc.fill_null(pc.invert(pc.match_substring_regex(texts, _ORDINARY)), False)
    if not pc.any(odd).as_py():
        return texts
    uris = texts.to_pylist()
    for i, is_odd in enumerate(odd.to_pylist()):
        if is_odd:
            try:
                uris[i] = _exact(uris[i])
            except ValueError as error:
                problems.setdefault(i, f"has a URI that {error}: {uris[i][:200]!r}")
                uris[i] = None
    return pa.array(uris, pa.string())


def _exact(text: str) -> str:
    uri = text.strip(_BLANK)
    if local := _LOCAL.match(uri):
        try:
            uri = f"file://{unquote(uri[local.end() :], errors='strict')}"
        except UnicodeDecodeError as error:
            raise ValueError("is not UTF-8 once its %XX are decoded") from error
    if _CONTROL.search(uri):
        raise ValueError("contains a line break or another control character")
    if uri.startswith("file:///"):
        return uri
    if re.search(r"^([A-Za-z]:[/\\]|[^/:]*\\|~\w*/|\$\w+/)|\$\{\w+\}", uri):
        raise ValueError("is a Windows path, or has ~ or a variable: tables hold plain URIs")
    if found := _PROTOCOL.match(uri):
        protocol, slashes = found[1].lower(), found[2]
        if slashes == "//" and protocol not in ("file", "local"):
            return f"{protocol}{uri[found.end(1) :]}"
        if protocol in _WITH_HOST or slashes == "/":
            raise ValueError(f"begins with {found[0]}: write file:///PATH or PROTOCOL://NAME")
    return uri


class Template:
    """A ``uri_template``, in the syntax of ``str.format``: ``{id}``, ``{id:06d}``, ``{{``."""

    def __init__(self, text: str) -> None:
        self.num_parents = 0  # How many folders above its table's a relative URI starts
        while text.startswith("../"):
            self.num_parents, text = self.num_parents + 1, text[3:]
        self._parts = [(a, b, c or "") for a, b, c, _ in Formatter().parse(text)]
        self.columns = [name for _, name, _ in self._parts if name is not None]
        self.folder = self._parts[0][0].rpartition("/")[0] if self._parts else ""
        """The part after these that does not depend on the table's rows."""

    def fill(self, columns: pa.RecordBatch, problems: dict[int, str]) -> pa.Array:
        """Return a URI per row, without ``../`` before it; empty if one of its columns is."""
        pieces: list[pa.Array | str] = []
        is_empty = pa.repeat(False, columns.num_rows)
        for literal, name, spec in self._parts:
            pieces.append(literal)
            if name is None:
                continue
            values = columns.column(name)
            if spec:
                text = _formatted(values, name, spec, problems)
            else:
                text = pc.utf8_trim(pc.cast(values, pa.string()), _BLANK)
            is_empty = pc.or_(is_empty, pc.fill_null(pc.equal(text, ""), True))
            pieces.append(text)
        filled = pc.binary_join_element_wise(*pieces, "")
        return pc.if_else(is_empty, pa.scalar("", pa.string()), filled)


def _formatted(values: pa.Array, name: str, spec: str, problems: dict[int, str]) -> pa.Array:
    """Format values; text of a number (7, not 7_0) counts as one, as CSV has only text."""
    is_int = spec[-1] in "bcdoxX" or re.match(r"[+ -]?0\d*$", spec)
    texts: list[str | None] = [None] * len(values)
    for i, value in enumerate(values.to_pylist()):
        try:
            if value and isinstance(value, str) and (is_int or spec[-1] in "eEfFgG%"):
                digits = value if re.fullmatch(r"\s*[-+.0-9eE]+\s*", value) else ""
                value = (int if is_int else float)(digits)
            elif is_int and isinstance(value, float) and value.is_integer():
                value = int(value)  # a column of integers with nulls, as pandas writes it
            if value not in (None, ""):
                texts[i] = format(value, spec)
        except (OverflowError, TypeError, ValueError):
            problems.setdefault(i, f"has {value!r} as its {name}, which {spec!r} cannot format")
    return pa.array(texts, pa.string())
