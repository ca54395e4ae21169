"""Checks, before any work, that a store honours the exclusive creates that commits rely on."""

import uuid

from tokpipe.errors import UnsafeStore
from tokpipe.storage.client import MULTIPART_BYTES, split_protocol
from tokpipe.storage.store import Store


def probe_store(store: Store) -> None:
    """Check that a second exclusive create of the same key fails.

    Remote stores are also tested with a multipart upload, which ends in another call: Ceph 16
    honours the condition in single requests but ignores it there. This uploads
    ``MULTIPART_BYTES``, so it is done once, when a job starts.

    Raises:
        UnsafeStore: the second create succeeded.
    """
    key = f"probe/{uuid.uuid4().hex}"
    attempts = {"in one request": b"second"}
    if split_protocol(store.uri)[0] not in ("file", "memory"):
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
    finally:
        store.delete(key)
