"""Checks before any work: a store honours exclusive creates, and every node sees the same one."""

import contextlib
import errno
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path

from tokpipe.errors import (
    AccessDenied,
    ConfigError,
    NodeTrouble,
    NotFound,
    StorageError,
    UnfitNode,
    UnsafeStore,
)
from tokpipe.storage.client import MULTIPART_BYTES, split_protocol
from tokpipe.storage.local_files import TEMPORARY_FOLDER
from tokpipe.storage.store import Store


def probe_store(store: Store) -> None:
    """Check that a second exclusive create of the same key fails, and delete what was written.

    Remote stores are also tested with a multipart upload, which ends in another call: Ceph 16
    honours the condition in single requests but ignores it there. This uploads
    ``MULTIPART_BYTES``, so it is done once, when a job starts. On local disk, folders that this
    created are removed again.
    """
    key = f"probe/{uuid.uuid4().hex}"
    attempts = {"in one request": b"second"}
    protocol, path = split_protocol(store.uri)
    root = Path(path)
    below = (root / "probe", root / TEMPORARY_FOLDER, root, *root.parents)
    created = [folder for folder in below if protocol == "file" and not folder.exists()]
    if protocol not in ("file", "memory"):
        attempts["in parts"] = bytes(MULTIPART_BYTES)
    try:
        store.create(key, b"first")
        for how, data in attempts.items():
            # The bytes differ, so True means that they replaced the first ones.
            if store.create(key, data):
                raise UnsafeStore(
                    f"{store.uri}: a second exclusive create of one key, {how}, succeeded. If two "
                    "drivers were started on this output by mistake, both would commit, and the "
                    "manifest would lose clips. Use a store that honours 'If-None-Match: *' (AWS "
                    "S3, SeaweedFS, MinIO, a local disk), or set output.accept_unsafe_store and "
                    "make sure yourself that only one driver runs at a time"
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
    """A new object in an output, by which a process on another node recognizes the output.

    A path that exists on both nodes may be two folders, and a URI may lead to two stores.
    """

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
