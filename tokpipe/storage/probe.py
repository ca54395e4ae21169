"""Finds out, before any work, whether a store keeps the promise that commits rest on."""

from __future__ import annotations

import uuid

from tokpipe.errors import UnsafeStore
from tokpipe.storage.client import MULTIPART_BYTES, split_protocol
from tokpipe.storage.store import Store


def probe_store(store: Store) -> None:
    """Check that a second exclusive create of one key is refused.

    Tried with one request, and on remote stores in parts too, since those end in another call
    (Ceph 16 honours the condition on the first and ignores it on the second). That costs one
    upload of ``MULTIPART_BYTES``, so it is done once, at the start of a job.

    Raises:
        UnsafeStore: the second create went through.
    """
    key = f"probe/{uuid.uuid4().hex}"
    attempts = {"in one request": b"second"}
    if split_protocol(store.uri)[0] not in ("file", "memory"):
        attempts["in parts"] = bytes(MULTIPART_BYTES)
    try:
        store.create(key, b"first")
        for how, data in attempts.items():
            # The bytes differ from the first ones, so True can only mean that they replaced them.
            if store.create(key, data):
                raise UnsafeStore(
                    f"{store.uri}: a second exclusive create of one key, {how}, was accepted. "
                    "Two drivers started on this output by mistake would both commit, and the "
                    "manifest would lose one's clips. Use a store that honours 'If-None-Match: *' "
                    "(AWS S3, SeaweedFS, MinIO, a local disk), or set output.accept_unsafe_store "
                    "and make sure by other means that one driver runs at a time."
                )
    finally:
        store.delete(key)
