"""A store: whole, immutable objects below one prefix of any fsspec file system."""

import contextlib
import os
import re
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tokpipe.config.job import StoreOptions
from tokpipe.errors import ConfigError, NotFound, StorageError
from tokpipe.storage.client import MULTIPART_BYTES, AlreadyExists, Client, StoredObject, client_of
from tokpipe.storage.local_files import TEMPORARY_FOLDER, put_file, remove_abandoned

_CREATE_ATTEMPTS = 5

_memory_lock = threading.Lock()


class Store:
    """Objects below one URI prefix. Keys are relative, with ``/`` between their parts.

    Each call happens completely or not at all. It retries transient errors until the store's
    deadline, then raises ``StorageError``. ``NotFound`` and ``AccessDenied`` are raised at once.
    Stores can be pickled; each process opens its own connections.
    """

    def __init__(self, uri: str, options: StoreOptions) -> None:
        self._options = options
        client = client_of(uri, options)
        if client.protocol not in ("file", "memory") and not re.search(
            r"://([^/?#\[]|\[[^/]*\])", uri
        ):
            raise ConfigError(f"{uri}: names no bucket or host: write {client.protocol}://NAME/...")
        self.uri = client.uri_of(client.path_of(uri))  # The prefix, without a trailing slash
        if client.is_local:
            self.uri = os.path.abspath(self.uri)  # noqa: PTH100 (resolve() follows links)
            remove_abandoned(Path(self.uri))

    def uri_of(self, key: str) -> str:
        """Return the full URI of an object."""
        parts = key.split("/")
        if "" in parts or "." in parts or ".." in parts or parts[0] == TEMPORARY_FOLDER:
            raise ValueError(f"{key!r} is not a key: keys are relative names, such as 'shards/a'")
        return f"{self.uri.rstrip('/')}/{key}"

    def get(self, key: str) -> bytes:
        """Return a whole object."""
        return self._client.read(self.uri_of(key))

    def get_range(self, key: str, start: int, end: int) -> bytes:
        """Return bytes ``start`` to ``end`` (exclusive), fewer where the object ends earlier."""
        return self._client.read(self.uri_of(key), start, end)

    def put(self, key: str, data: bytes) -> None:
        """Write an object, replacing any older one. Readers see the old object or the new one."""
        self._write(key, data, exclusive=False)

    def create(self, key: str, data: bytes) -> bool:
        """Write an object only if the key is free. Return True if the object is now ours.

        If an earlier attempt succeeded but its answer was lost, the retry finds the key taken.
        The object is then read back, and equal bytes count as ours. ``data`` must therefore
        differ from what any other writer would write; include an attempt id.
        """
        for _ in range(_CREATE_ATTEMPTS):
            try:
                self._write(key, data, exclusive=True)
            except AlreadyExists:
                with contextlib.suppress(NotFound):  # deleted since, so try again
                    return self.get(key) == data
            else:
                return True
        raise StorageError(
            f"{self.uri_of(key)}: create says it exists, read says it does not, "
            f"{_CREATE_ATTEMPTS} times in a row. Either something keeps deleting it, or the store "
            "is inconsistent: find out which before you run again"
        )

    def size(self, key: str) -> int | None:
        """Return the size in bytes, or None if there is no such object."""
        try:
            return self._client.info(self.uri_of(key)).size
        except NotFound:
            return None

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Yield the objects whose keys start with ``prefix``, in any order."""
        folder, _, start = prefix.rpartition("/")
        folder_uri = self.uri_of(folder) if folder else self.uri
        root = self._client.path_of(self.uri).rstrip("/") + "/"
        for found in self._client.iter_objects(folder_uri, start):
            key = found.key.removeprefix(root)
            if not key.startswith(f"{TEMPORARY_FOLDER}/"):
                yield StoredObject(key, found.size_bytes, found.modified_s)

    def delete(self, key: str) -> None:
        """Delete an object. Deleting one that does not exist is not an error."""
        uri = self.uri_of(key)
        with contextlib.suppress(NotFound):
            self._client.call("deleting it", uri, "rm_file", self._client.path_of(uri))

    @property
    def _client(self) -> Client:
        return client_of(self.uri, self._options)

    def _write(self, key: str, data: bytes, *, exclusive: bool) -> None:
        uri, client = self.uri_of(key), self._client
        doing = "creating it" if exclusive else "writing it"
        keywords: dict[str, Any] = {"mode": "create"} if exclusive else {}
        if client.is_s3:
            keywords["chunksize"] = MULTIPART_BYTES // 2
        try:
            if client.is_local:
                paths = Path(self.uri), Path(uri)
                put = partial(put_file, *paths, data, exclusive=exclusive)
                client.run(doing, uri, lambda _: put(private=key.startswith("plan/")))
                return
            # In memory, fsspec checks first and then writes.
            with _memory_lock if client.protocol == "memory" else contextlib.nullcontext():
                client.call(doing, uri, "pipe_file", client.path_of(uri), data, **keywords)
        except NotFound as error:
            if client.is_local:  # such as a folder below /proc
                raise StorageError(
                    f"{uri}: its folder cannot be created ({error.__cause__}). Correct output.uri"
                ) from error
            # Keys need no folder, so the bucket must be missing.
            raise StorageError(
                f"{uri}: cannot be written, because its bucket or container does not exist "
                f"({error.__cause__}). Create {self.uri.split('/')[2]!r} first, or correct "
                "output.uri"
            ) from error
