"""Checks, before any work, that a store honours the exclusive creates that commits rely on."""

import contextlib
import uuid
from pathlib import Path

from tokpipe.errors import StorageError, UnsafeStore
from tokpipe.storage.client import MULTIPART_BYTES, split_protocol
from tokpipe.storage.local_files import TEMPORARY_FOLDER
from tokpipe.storage.store import Store


def probe_store(store: Store, *, leave_folders: bool = True) -> None:
    """Check that a second exclusive create of the same key fails, and delete what was written.

    Remote stores are also tested with a multipart upload, which ends in another call: Ceph 16
    honours the condition in single requests but ignores it there. This uploads
    ``MULTIPART_BYTES``, so it is done once, when a job starts. Without ``leave_folders``, folders
    on local disk that this created are removed again.
    """
    key = f"probe/{uuid.uuid4().hex}"
    attempts = {"in one request": b"second"}
    protocol, path = split_protocol(store.uri)
    root = Path(path)
    below = (root / "probe", root / TEMPORARY_FOLDER, root, *root.parents)
    is_cleaned = protocol == "file" and not leave_folders
    created = [folder for folder in below if is_cleaned and not folder.exists()]
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
