"""Finds what a glob matches, on local disk and in object stores."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fsspec.utils import glob_translate

from tokpipe.config.job import StoreOptions
from tokpipe.errors import ConfigError, NotFound
from tokpipe.storage.client import client_of, split_protocol

_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Match:
    """One name that a glob matches."""

    uri: str
    is_folder: bool = False


def iter_matches(pattern: str, options: StoreOptions) -> Iterator[Match]:
    """Yield what ``pattern`` matches, in any order.

    ``*`` and ``?`` stay within one folder and also match a leading dot, as in object stores;
    ``**`` crosses folders. A pattern that matches nothing but is the exact name of an object
    (``[2019] trip.mp4``) yields that object.

    Local matches include pipes, dangling links and the like, for the caller to reject by name.
    Folders are included only if the last part of the pattern has an extension (``x.mp4/``).

    Raises:
        ConfigError: the pattern is malformed, or covers a whole object store.
        StorageError: the store cannot be listed.
    """
    matches = _walk(pattern, options) if _MAGIC.search(pattern) else iter(())
    first = next(matches, None) or _exact(pattern, options)
    if first is not None:
        yield first
        yield from matches


def _exact(uri: str, options: StoreOptions) -> Match | None:
    """Return the match of an object's own name, if it exists."""
    protocol, path = split_protocol(uri)
    if protocol == "file":
        return Match(uri, Path(path).is_dir()) if os.path.lexists(path) else None
    try:
        client_of(uri, options).info(uri)
    except NotFound:
        return None
    return Match(uri)


def _walk(pattern: str, options: StoreOptions) -> Iterator[Match]:
    client = client_of(pattern, options)
    path = client.path_of(pattern)
    try:
        matches = re.compile(glob_translate(path)).match
    except (ValueError, re.error) as error:
        raise ConfigError(
            f"{pattern}: is not a valid glob ({error}). '*' and '?' match within one folder; "
            "'**' must be a whole part of the path, as in videos/**/*.mp4"
        ) from error
    fixed = path[: _MAGIC.search(path).start()].rpartition("/")[0]  # type: ignore[union-attr]
    if client.is_local:
        depth = None if "**" in path else path.count("/") - fixed.count("/")
        with_folders = bool(re.search(r"\.\w+$", path))
        for found, is_folder in _walk_local(fixed or "/", depth, ()):
            if (with_folders or not is_folder) and matches(found):
                yield Match(found, is_folder)
        return
    if not fixed.strip("/"):
        raise ConfigError(
            f"{pattern}: covers a whole store. Name the bucket, as in s3://bucket/*.mp4"
        )
    in_fixed = path[len(fixed) + 1 :]
    stem = in_fixed[: _MAGIC.search(in_fixed).start()]  # type: ignore[union-attr]
    for listed in client.iter_objects(client.uri_of(fixed), stem):
        if matches(listed.path):
            yield Match(client.uri_of(listed.path))


def _walk_local(
    folder: str, depth: int | None, above: tuple[tuple[int, int], ...]
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
    with entries:
        for entry in entries:
            is_folder = _is_folder(entry)
            yield entry.path, is_folder
            if is_folder and (depth is None or depth > 1):
                yield from _walk_local(
                    entry.path, None if depth is None else depth - 1, (*above, here)
                )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
