"""Finds the files that a source's ``uri`` names, on local disk and in object stores."""

import errno
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property

import bracex
from fsspec.utils import glob_translate

from tokpipe.config.job import StoreOptions
from tokpipe.errors import ConfigError, NotFound, StorageError
from tokpipe.identity import version_of
from tokpipe.storage.client import Client, client_of, split_protocol
from tokpipe.storage.left_out import LOOP, NO_MATCH, UNREADABLE, LeftOut, kind_of
from tokpipe.storage.read_ahead import read_ahead
from tokpipe.storage.trouble import Trouble, classify

_MAGIC = re.compile(r"[*?\[]")
_STAR = re.escape("[^/]*")
_LOOK_UP_THREADS = 16
_MAX_ALTERNATIVES = 100_000
_MAX_CHARS = 2**28  # Of all alternatives together
_MAX_BRACES = 169  # They may be nested, and bracex is recursive


@dataclass(frozen=True, slots=True)
class Match:
    """One name that a source takes."""

    uri: str
    is_folder: bool = False
    version: int | None = field(default=None, compare=False)  # Of its content, if known


@dataclass
class _Scan:
    """One pass over the names below a folder, for globs or for the folder as a source."""

    folder: str  # The file system's name, without a trailing slash; empty for the root of a disk
    globs: dict[str, str]  # URIs by glob below the folder
    is_glob: bool = True

    def __post_init__(self) -> None:
        self.uris = list(self.globs.values())
        groups = (f"({_linear(glob_translate(glob))})" for glob in self.globs)
        self.regex = re.compile("|".join(groups))
        # What all names that the globs match begin with, and how many folders deep they look.
        starts = [_MAGIC.split(glob, 1)[0] for glob in self.globs]
        self.stem = os.path.commonprefix(starts)  # noqa: RUF071
        self.depth = max(math.inf if "**" in glob else 1 + glob.count("/") for glob in self.globs)
        # Whether a folder whose name matches is a match, to be rejected by name.
        self.takes_folders = any(re.search(r"\.\w+$", glob) for glob in self.globs)


@dataclass(eq=False)
class Listing:
    """The files that a URI names: one, those that a pattern matches, or those below a folder.

    ``*`` and ``?`` stay within one folder and also match a leading dot, as in object stores, except
    for macOS's ``._`` files, which hold attributes; ``**`` crosses folders; braces expand. Leading
    folders, and a file's name with brackets or braces, mean themselves if they exist on disk as
    written (``[2019] trip.mp4``). In stores, ``[[]`` stands for a bracket.

    Iterating looks into the store, and yields names in any order. One that two alternatives of a
    brace match comes twice. Local matches include pipes, dangling links and the like, for the
    caller to reject by name. Folders are matches only of globs whose last part has an extension.
    """

    uri: str
    options: StoreOptions
    known: Sequence[str] = ()  # Extensions a folder source takes, and those counted beside a glob
    output_uri: str = ""  # What is below it is not part of a folder
    left_out: LeftOut = field(default_factory=LeftOut, init=False)  # Complete after the last match
    folder = ""  # URI of the last folder that was listed as a folder, not for a glob
    _elsewhere = frozenset[str]()  # Kinds that other sources take or count in the same folders

    def __post_init__(self) -> None:
        self._known = frozenset(f".{extension}" for extension in self.known)

    def share(self, earlier: Sequence["Listing"], later: Sequence["Listing"]) -> None:
        """Leave out no kind that other sources of a job take, or count, in the same folders."""
        base, kinds = self._reach
        for other in (*earlier, *later):
            at, taken = other._reach
            if at.startswith(base) or base.startswith(at):
                counted = self._known & other._known - kinds if other in earlier else frozenset()
                self._elsewhere |= taken | counted

    @cached_property
    def _reach(self) -> tuple[str, frozenset[str]]:
        """Return the folder in which files are looked for, and the kinds that are taken."""
        literal, pattern = self._parts
        kinds = {kind_of((literal + end).rpartition("/")[2]) for end in expand_braces(pattern)}
        fixed = literal + re.split(r"[*?\[{]", pattern, maxsplit=1)[0]
        folder = self.uri.rstrip("/") if fixed == self.uri else fixed.rpartition("/")[0]
        return f"{folder}/", frozenset(kinds) & self._known or self._known | kinds

    def __iter__(self) -> Iterator[Match]:
        self._parse()
        self.left_out = LeftOut()
        unmatched = {*self._names.values(), *(uri for scan in self._scans for uri in scan.uris)}
        has_several = len(unmatched) > 1
        files = read_ahead(self._look_up, self._names.values(), _LOOK_UP_THREADS)
        for (path, uri), file in zip(self._names.items(), files, strict=True):
            if file is not None:
                unmatched.remove(uri)
                yield file
            # One of {000..999}.tar that is missing is hardly a folder, so save requests.
            elif self._client.can_list and not (has_several and kind_of(path) in self._known):
                self._scans.append(_Scan(path.rstrip("/"), {"**": uri}, is_glob=False))
        for scan in self._scans:
            yield from self._below(scan, unmatched)
        for uri in unmatched if has_several else ():
            self.left_out.add(NO_MATCH, uri)

    def explain_nothing(self) -> str:
        """Return a sentence on what is there, after an iteration without a match."""
        if self.left_out.counts.keys() - {NO_MATCH}:
            return f"Found there instead: {self.left_out.text}."
        if not self._client.is_local:
            return "The server has no such file."
        literal, pattern = self._parts
        missing = pattern.strip("/").partition("/")[0] or "such files"
        return f"{self._client.path_of(literal)} exists, but has no {missing}."

    @cached_property
    def _client(self) -> Client:
        return client_of(self.uri, self.options)

    @cached_property
    def _parts(self) -> tuple[str, str]:
        """Split the URI into what exists on disk as written, which means itself, and a pattern."""
        protocol, path = split_protocol(self.uri)
        there = path if protocol == "file" else ""
        while there and not (
            os.path.isdir(there)  # noqa: PTH112 (never raises)
            or (os.path.lexists(there) and not re.search(r"[*?][^/]*$", there))
        ):
            there = there.rpartition("/")[0]
        at = len(self.uri) - len(path) + len(there)
        return self.uri[:at], self.uri[at:]

    def _parse(self) -> None:
        literal, pattern = self._parts
        can_list = self._client.can_list
        if not can_list and ("*" in pattern or pattern.endswith("/")):
            raise _not_listable(self.uri)
        self._names: dict[str, str] = {}  # URIs that are names, by path
        globs: dict[str, dict[str, str]] = {}
        for end in expand_braces(pattern):
            path = self._client.path_of(literal + end)
            start = len(path) - len(end.rstrip("/"))
            if can_list and (wildcard := _MAGIC.search(path, start)):
                folder = path[: wildcard.start()].rpartition("/")[0]
                globs.setdefault(folder, {})[path[len(folder) + 1 :]] = literal + end
            else:
                self._names[path] = literal + end
        try:
            self._scans = [_Scan(*group) for group in globs.items()]
        except (ValueError, re.error) as error:
            do = "'**' must be a whole part of the path, as in videos/**/*.mp4"
            raise ConfigError(f"{self.uri}: is not a valid glob ({error}): {do}") from error

    def _look_up(self, uri: str) -> Match | None:
        path = self._client.path_of(uri)
        if self._client.is_local:
            is_file = os.path.lexists(path) and not os.path.isdir(path)  # noqa: PTH112
            return Match(uri, False, _local_version(path)) if is_file else None
        with suppress(NotFound):
            if not uri.endswith("/"):
                found = client_of(uri, self.options).info(uri)  # braces may be in the host
                return Match(uri, False, found.source_version)
        return None

    def _below(self, scan: _Scan, unmatched: set[str]) -> Iterator[Match]:
        start = len(scan.folder) + 1
        output = client_of(self.output_uri, self.options).path_of(self.output_uri) + "/"
        # A glob means what it says, and a job may have its output in the folder itself.
        has_output = not scan.is_glob and len(output) > start
        for path, is_folder, version in self._listed(scan):
            name = path[start:]
            if (is_folder and not scan.takes_folders) or (has_output and path.startswith(output)):
                continue
            if uri := self._taker(scan, path):
                unmatched.discard(uri)
                if not scan.is_glob:
                    self.folder = uri
                elif name.rpartition("/")[2].startswith("._") and "._" not in uri:
                    self.left_out.add(kind_of(name), name)
                    continue
                if self._client.is_local and not is_folder:
                    version = _local_version(path)
                yield Match(self._client.uri_of(path), is_folder, version)
            elif not is_folder and name.startswith(scan.stem):
                kind = kind_of(name)
                if (
                    (kind in self._known or not scan.is_glob)
                    and kind not in self._elsewhere
                    and name.count("/") < scan.depth
                    and path not in self._names
                    and not any(self._taker(other, path) for other in self._scans)
                ):
                    # A folder that is a link to itself looks like a file.
                    is_loop = "." not in name and self._client.is_local and _is_loop(path)
                    self.left_out.add(LOOP if is_loop else kind, name)

    def _taker(self, scan: _Scan, path: str) -> str:
        """Return the URI for which a scan takes a file, empty if none does."""
        if not path.startswith(f"{scan.folder}/"):
            return ""
        name = path[len(scan.folder) + 1 :]
        if not scan.is_glob:
            return scan.uris[0] if kind_of(name) in self._known else ""
        match = scan.regex.match(name)
        return scan.uris[match.lastindex - 1] if match and match.lastindex else ""

    def _listed(self, scan: _Scan) -> Iterator[tuple[str, bool, int | None]]:
        client = self._client
        if client.is_local:
            yield from _walk_local(scan.folder or "/", scan.depth, (), self.left_out)
            return
        if not scan.folder.strip("/"):
            found = f"{self.uri}: covers a whole store"
            raise ConfigError(f"{found}. Name the bucket, as in s3://bucket/*.mp4")
        try:
            for listed in client.iter_objects(client.uri_of(scan.folder), scan.stem):
                yield listed.key, False, listed.version
        except NotImplementedError as error:
            raise _not_listable(self.uri) from error


def expand_braces(text: str) -> list[str]:
    """Return what ``{a,b}``, ``{000..999}`` and ``{0..9..3}`` stand for, in order, as in bash."""
    try:
        if text.count("{") > _MAX_BRACES:
            raise bracex.ExpansionLimitException
        limit = min(_MAX_ALTERNATIVES, _MAX_CHARS // (len(text) + 1))
        return bracex.expand(text, keep_escapes=True, limit=limit, return_empty=True)
    except bracex.ExpansionLimitException as error:
        found = f"these braces stand for more than {_MAX_ALTERNATIVES:,} names, or for long ones"
        raise ConfigError(f"{text[:1000]}: {found}. Use '*', which lists what is there") from error


def _not_listable(uri: str) -> ConfigError:
    protocol = split_protocol(uri)[0]
    found = f"{uri}: names several files, but {protocol}:// cannot list what there is"
    do = "Write a table of URLs (kind: table), or braces such as {000..999}.mp4"
    return ConfigError(f"{found}. {do}")


def _local_version(path: str) -> int | None:
    with suppress(OSError):  # a dangling link, or gone
        status = os.stat(path)  # noqa: PTH116
        return version_of(status.st_size, status.st_mtime_ns)
    return None


def _is_loop(path: str) -> bool:
    try:
        os.stat(path)  # noqa: PTH116
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def _walk_local(
    folder: str, depth: float, above: tuple[tuple[int, int], ...], left_out: LeftOut
) -> Iterator[tuple[str, bool, None]]:
    """Yield (path, is_folder) for everything below a folder; follows links, but not in loops."""
    try:
        status = os.stat(folder)  # noqa: PTH116
        here = (status.st_dev, status.st_ino)
        if here in above:
            left_out.add(LOOP, folder)
            return
        with os.scandir(folder) as entries:
            for entry in entries:
                # A link to itself is not a folder, and DirEntry.is_dir() would raise.
                is_link = entry.is_symlink()
                is_folder = os.path.isdir(entry.path) if is_link else entry.is_dir()  # noqa: PTH112
                yield entry.path, is_folder, None
                if is_folder and depth > 1:
                    yield from _walk_local(entry.path, depth - 1, (*above, here), left_out)
    except OSError as error:
        trouble = classify(error)
        if trouble in (Trouble.TRANSIENT, Trouble.NODE):
            found = f"{folder}: cannot be listed ({error.strerror})"
            raise StorageError(f"{found}, and the plan would lack files") from error
        if above or trouble is not Trouble.NOT_FOUND:  # such as lost+found, or removed meanwhile
            left_out.add(UNREADABLE, folder)


def _linear(regex: str) -> str:
    """End each ``*`` but a folder's last where what follows first occurs; all could take hours."""
    regex = re.sub(f"({_STAR})+", r"[^/]*", regex)
    fixed = r"(?:\[\^/\]|\\.|[^/*\[\\])+?"  # without sets of letters, which may match a /
    return re.sub(rf"{_STAR}({fixed})(?={_STAR})", r"(?>[^/]*?\1)", regex)
