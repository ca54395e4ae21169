"""Finds the files that a source's ``uri`` names, on local disk and in object stores."""

import difflib
import itertools
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fsspec.utils import glob_translate

from tokpipe.config.job import StoreOptions
from tokpipe.errors import ConfigError, NotFound
from tokpipe.storage.braces import expand_braces
from tokpipe.storage.client import Client, client_of, split_protocol
from tokpipe.storage.left_out import NO_MATCH, UNREADABLE, LeftOut, kind_of

_MAGIC = re.compile(r"[*?\[]")
_WILDCARD = re.compile(r"[*?]")
_NO_MAGIC = re.compile(r"(?!)")
_LOOK_UP_THREADS = 16


@dataclass(frozen=True, slots=True)
class Match:
    """One name that a source takes."""

    uri: str
    is_folder: bool = False


@dataclass
class _Scan:
    """One pass over the names below a folder, for a folder source or for globs."""

    folder: str
    """As the file system names it, without a trailing slash; empty for the root of a disk."""
    known: frozenset[str]
    """Kinds that a folder source takes, and that are counted beside a glob."""
    globs: Sequence[str]
    """What is looked for: globs below the folder, or the folder's own URI."""
    regex: re.Pattern[str] | None = None
    """Has a group per glob; None for a folder source."""
    stem: str = ""
    """What all names that the globs match begin with."""
    depth: int | None = None
    """How many folders deep the globs look; None for all."""
    takes_folders: bool = False
    """Whether a folder whose name matches is a match, to be rejected by name."""
    hits: set[int] = field(default_factory=set)
    """Which globs have matched, from 1."""

    def name_of(self, path: str) -> str:
        """Return a file's name in this pass, empty if it is not part of it."""
        if not path.startswith(f"{self.folder}/{self.stem}"):
            return ""
        name = path[len(self.folder) + 1 :]
        return name if self.depth is None or name.count("/") < self.depth else ""

    def takes(self, name: str) -> bool:
        if self.regex is not None:
            match = self.regex.match(name)
            number = match and match.lastindex
        else:
            number = int(kind_of(name) in self.known)
        if number:
            self.hits.add(number)
        return bool(number)

    def counted_as(self, path: str) -> str:
        """Return the kind of a file that is not taken: any in a folder, known ones for a glob."""
        if name := self.name_of(path):
            kind = kind_of(name)
            if self.regex is None or kind in self.known:
                return kind
        return ""


class Listing:
    """The files that a URI names: one, those that a pattern matches, or those below a folder.

    ``*`` and ``?`` stay within one folder and also match a leading dot, as in object stores;
    ``**`` crosses folders; braces expand. A pattern that matches nothing is read again with
    brackets and braces as plain characters, and then as an exact name (``[2019] trip.mp4``).

    Iterating looks into the store, and yields names in any order. One that two alternatives of a
    brace match comes twice. Local matches include pipes, dangling links and the like, for the
    caller to reject by name. Folders are matches only of globs whose last part has an extension.

    Iterating raises:
        ConfigError: the pattern is malformed, covers a whole object store, or needs a listing of
            a store that has none.
        StorageError: the store cannot be listed.
    """

    def __init__(
        self,
        uri: str,
        options: StoreOptions,
        *,
        known: Sequence[str] = (),
        literal: str = "",
        output_uri: str = "",
    ) -> None:
        """Arguments:

        known: extensions of the files that a folder source takes, and that are counted where they
            lie beside a glob.
        literal: leading folders of ``uri`` in which wildcards mean themselves.
        output_uri: what is below it is not part of a folder.
        """
        self.uri = uri
        self.left_out = LeftOut()
        """What lay beside the matches, complete after the last one."""
        self.folder = ""
        """URI of the last folder that was listed as a folder, not for a glob."""
        self.peers: Sequence[Listing] = (self,)
        """The listings of all sources of a job. What one of them takes is left out by none, and
        what several leave out counts for the first."""
        self._options, self._literal, self._output_uri = options, literal, output_uri
        self._known = frozenset(f".{extension}" for extension in known)
        self._names: dict[str, str] = {}
        """URIs that are names, by path."""
        self._scans: list[_Scan] | None = None

    @cached_property
    def _client(self) -> Client:
        return client_of(self.uri, self._options)

    def __iter__(self) -> Iterator[Match]:
        unsuccessful = []
        for uris, magic in self._readings():
            self._parse(uris, magic)
            self.left_out = LeftOut()
            found = False
            for match in self._matches():
                found = True
                yield match
            if found:
                return
            unsuccessful.append(self.left_out)
        self.left_out = max(unsuccessful, key=lambda left_out: left_out.num_files)

    def explain_nothing(self) -> str:
        """Return a sentence on what is there, after an iteration without a match."""
        if self.left_out.counts.keys() - {NO_MATCH}:
            return f"Found there instead: {self.left_out.text}."
        client = self._client
        if not client.can_list:
            return "The server has no such file."
        (path, *_) = [*self._names, *(scan.folder for scan in self._scans or ())]
        nearest = path
        while nearest.strip("/") and not self._is_folder(nearest):
            nearest = nearest.rpartition("/")[0]
        missing = path[len(nearest) :].strip("/").partition("/")[0] or "such files"
        names: dict[str, str] = {}
        if client.is_local:
            names = {one.name.lower(): one.name for one in Path(nearest or "/").iterdir()}
        near = difflib.get_close_matches(missing.lower(), names, n=1)
        hint = f": did you mean {names[near[0]]}?" if near else "."
        return f"{client.uri_of(nearest or '/')} exists, but has no {missing}{hint}"

    def _is_folder(self, path: str) -> bool:
        if self._client.is_local:
            return Path(path).is_dir()
        return next(self._client.iter_objects(self._client.uri_of(path)), None) is not None

    def _readings(self) -> Iterator[tuple[list[str], re.Pattern[str]]]:
        """Yield what the URI may mean: URIs without braces, and the wildcards in them."""
        fixed, as_written = self.uri[: len(self._literal)], self.uri[len(self._literal) :]
        # The same accents may be other characters on disk: macOS used to write NFD.
        forms = (unicodedata.normalize(form, as_written) for form in ("NFC", "NFD"))
        for written in dict.fromkeys([as_written, *forms]):
            expanded = [fixed + end for end in expand_braces(written)]
            if not self._client.can_list:
                if "*" in written or written.endswith("/"):
                    raise _not_listable(self.uri)
                yield expanded, _NO_MAGIC
                continue
            yield expanded, _MAGIC
            if re.search(r"[\[{]", written) and _WILDCARD.search(written):
                yield [fixed + written], _WILDCARD
            if len(expanded) > 1 or _MAGIC.search(written):
                yield [fixed + written], _NO_MAGIC

    def _parse(self, uris: list[str], magic: re.Pattern[str]) -> None:
        self._names = {}
        globs: dict[str, list[str]] = {}
        for uri in uris:
            path = self._client.path_of(uri)
            if wildcard := magic.search(path, len(self._literal)):
                folder = path[: wildcard.start()].rpartition("/")[0]
                globs.setdefault(folder, []).append(path[len(folder) + 1 :])
            else:
                self._names[path] = uri
        self._scans = [self._scan(*group, magic) for group in globs.items()]

    def _scan(self, folder: str, globs: list[str], magic: re.Pattern[str]) -> _Scan:
        escaped = globs if magic is _MAGIC else [glob.replace("[", "[[]") for glob in globs]
        try:
            regex = re.compile("|".join(f"({glob_translate(glob)})" for glob in escaped))
        except (ValueError, re.error) as error:
            raise ConfigError(
                f"{self.uri}: is not a valid glob ({error}). '*' and '?' match within one folder; "
                "'**' must be a whole part of the path, as in videos/**/*.mp4"
            ) from error
        return _Scan(
            folder,
            self._known,
            globs,
            regex,
            stem=os.path.commonprefix([magic.split(glob, 1)[0] for glob in globs]),  # noqa: RUF071
            depth=None if "**" in "".join(globs) else 1 + max(glob.count("/") for glob in globs),
            takes_folders=any(re.search(r"\.\w+$", glob) for glob in globs),
        )

    def _matches(self) -> Iterator[Match]:
        self._scans = scans = self._scans or []
        num_patterns = len(self._names) + sum(len(scan.globs) for scan in scans)
        unmatched = []
        with ThreadPoolExecutor(_LOOK_UP_THREADS) as pool:
            are_files = pool.map(self._is_file, self._names.values())
            for (path, uri), is_file in zip(self._names.items(), are_files, strict=True):
                if is_file:
                    yield Match(uri)
                elif not self._client.can_list or (
                    # One of {000..999}.tar that is missing is hardly a folder, so save requests.
                    num_patterns > 1 and kind_of(path) in self._known
                ):
                    unmatched.append(uri)
                else:
                    scans.append(_Scan(path.rstrip("/"), self._known, (uri,)))
        for scan in scans:
            yield from self._below(scan)
            numbered = enumerate(scan.globs, 1)
            unmatched += [glob for number, glob in numbered if number not in scan.hits]
        if num_patterns > 1:
            for glob in unmatched:
                self.left_out.add(NO_MATCH, glob)

    def _is_file(self, uri: str) -> bool:
        path = self._client.path_of(uri)
        if self._client.is_local:
            return os.path.lexists(path) and not Path(path).is_dir()
        try:
            return not uri.endswith("/") and bool(self._client.info(uri))
        except NotFound:
            return False

    def _below(self, scan: _Scan) -> Iterator[Match]:
        uri_of, start = self._client.uri_of, len(scan.folder) + 1
        output = client_of(self._output_uri, self._options).path_of(self._output_uri) + "/"
        # A glob means what it says, and a job may have its output in the folder itself.
        has_output = scan.regex is None and len(output) > start
        is_alone = len(self.peers) == 1 and "{" not in self.uri
        for path, is_folder in self._listed(scan):
            name = path[start:]
            if (is_folder and not scan.takes_folders) or (has_output and path.startswith(output)):
                continue
            if scan.takes(name):
                if scan.regex is None:
                    self.folder = scan.globs[0]
                yield Match(uri_of(path), is_folder)
            elif (
                not is_folder
                and (kind := scan.counted_as(path))
                and (is_alone or not self._is_accounted_for(path, scan))
            ):
                self.left_out.add(kind, name)

    def _listed(self, scan: _Scan) -> Iterator[tuple[str, bool]]:
        client = self._client
        if client.is_local:
            yield from _walk_local(scan.folder or "/", scan.depth, (), self.left_out)
            return
        if not scan.folder.strip("/"):
            raise ConfigError(
                f"{self.uri}: covers a whole store. Name the bucket, as in s3://bucket/*.mp4"
            )
        try:
            for listed in client.iter_objects(client.uri_of(scan.folder), scan.stem):
                yield listed.path, False
        except NotImplementedError as error:
            raise _not_listable(self.uri) from error

    def _is_accounted_for(self, path: str, scan: _Scan) -> bool:
        """Whether another scan or source takes a file, or an earlier one has counted it."""
        peers = [peer for peer in self.peers if peer._client.protocol == self._client.protocol]
        if any(peer._takes(path) for peer in peers):
            return True
        before = itertools.takewhile(
            lambda other: other is not scan, (scan for peer in peers for scan in peer._scans or ())
        )
        return any(other.counted_as(path) for other in before)

    def _takes(self, path: str) -> bool:
        """Whether this source takes a file, without looking into the store."""
        if self._scans is None:
            self._parse(*next(self._readings()))
        for scan in self._scans or ():
            if scan.regex and (name := scan.name_of(path)) and scan.regex.match(name):
                return True
        folder = path
        while folder:
            if folder in self._names:
                return folder == path or kind_of(path[len(folder) + 1 :]) in self._known
            folder = folder.rpartition("/")[0]
        return False


def _not_listable(uri: str) -> ConfigError:
    protocol = split_protocol(uri)[0]
    return ConfigError(
        f"{uri}: names several files, but {protocol}:// cannot list what there is. Write a table "
        "with one URL per row (kind: table), or expand the pattern with braces, as in "
        "{000..999}.mp4"
    )


def _walk_local(
    folder: str, depth: int | None, above: tuple[tuple[int, int], ...], left_out: LeftOut
) -> Iterator[tuple[str, bool]]:
    """Yield (path, is_folder) for everything below a folder; follows links, but not in loops."""
    try:
        status = os.stat(folder)  # noqa: PTH116
        here = (status.st_dev, status.st_ino)
        if here in above:
            return
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    except PermissionError:  # such as lost+found
        left_out.add(UNREADABLE, folder)
        return
    with entries:
        for entry in entries:
            is_folder = _is_folder(entry)
            yield entry.path, is_folder
            if is_folder and (depth is None or depth > 1):
                below = None if depth is None else depth - 1
                yield from _walk_local(entry.path, below, (*above, here), left_out)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
