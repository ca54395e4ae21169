"""Whole, immutable objects below a prefix, and checks that the store is safe and shared."""

import contextlib
import errno
import os
import re
import socket
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tokpipe.config.job import StoreOptions
from tokpipe.errors import (
    AccessDenied,
    ConfigError,
    NodeTrouble,
    NotFound,
    StorageError,
    UnfitNode,
    UnsafeStore,
)
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
        """Write an object only if the key is free. Return True if the object is now ours. A retry
        after a lost answer finds the key taken, so equal bytes there count as ours: they must
        differ from what any other writer would write; include an attempt id."""
        for _ in range(_CREATE_ATTEMPTS):
            try:
                self._write(key, data, exclusive=True)
                return True
            except AlreadyExists:
                with contextlib.suppress(NotFound):  # deleted since, so try again
                    return self.get(key) == data
        found = f"{self.uri_of(key)}: create says it exists, read says it does not"
        why = "something deletes it, or the store is inconsistent"
        raise StorageError(f"{found}, {_CREATE_ATTEMPTS} times in a row: {why}")

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
            found, do = "its folder cannot be created", "Correct"  # such as one below /proc
            if not client.is_local:  # keys need no folder
                found = "cannot be written, because its bucket or container does not exist"
                do = f"Create {self.uri.split('/')[2]!r} first, or correct"
            raise StorageError(f"{uri}: {found} ({error.__cause__}). {do} output.uri") from error


def probe_store(store: Store) -> None:
    """Check that a second exclusive create of the same key fails, and delete what was written.

    Remote stores are also tested with a multipart upload, where Ceph 16 ignores the condition: as
    that sends ``MULTIPART_BYTES``, only when a job starts. Local folders made here are removed.
    """
    key = f"probe/{uuid.uuid4().hex}"
    attempts = {"in one request": b"second"}
    client, root = store._client, Path(store.uri)
    below = (root / "probe", root / TEMPORARY_FOLDER, root, *root.parents)
    created = [folder for folder in below if client.is_local and not folder.exists()]
    if client.protocol not in ("file", "memory"):
        attempts["in parts"] = bytes(MULTIPART_BYTES)
    try:
        store.create(key, b"first")
        for how, data in attempts.items():
            # The bytes differ, so True means that they replaced the first ones.
            if store.create(key, data):
                raise UnsafeStore(
                    f"{store.uri}: a second exclusive create of one key, {how}, succeeded. Two "
                    "drivers on this output would both commit, and lose clips. Use another store, "
                    "or set output.accept_unsafe_store and let only one driver run at a time"
                )
        store.delete(key)
    except BaseException:
        with contextlib.suppress(StorageError):  # what stopped the probe matters more
            store.delete(key)
        raise
    finally:
        for folder in created:
            with contextlib.suppress(OSError):  # another process has written there
                folder.rmdir()


@dataclass(frozen=True)
class Landmark:
    """A new object in an output, by which a process on another node recognizes the output. A path
    that exists on both nodes may be two folders, and a URI may lead to two stores."""

    store: Store
    key: str
    data: bytes

    def check(self) -> None:
        """Read the object here, then write and delete another."""
        probe = f"probe/{uuid.uuid4().hex}"
        try:
            if self.store.get(self.key) != self.data:
                raise NotFound(f"{self.store.uri_of(self.key)}: is not what the driver wrote")
            self.store.put(probe, b"")
            self.store.delete(probe)
        except (StorageError, ConfigError) as error:
            host, number = socket.gethostname(), getattr(error.__cause__, "errno", 0)
            is_other = isinstance(error, NotFound | AccessDenied | ConfigError)
            if is_other or number == errno.EROFS:
                raise UnfitNode(
                    f"{host} does not see the driver's output, so shards written there would be "
                    f"lost ({error}). output.uri has to be on a file system that all nodes share, "
                    "or in an object store"
                ) from error
            raise NodeTrouble(f"{host} does not reach the output: {error}") from error
