"""Objects below a URI prefix, in memory, on disk, in S3 and wherever else fsspec reaches."""

from tokpipe.storage.fetch import LocalVideo, fetch_to_file
from tokpipe.storage.fsspec_store import open_store
from tokpipe.storage.probe import Landmark, probe_store
from tokpipe.storage.store import Store, StoredObject

__all__ = [
    "Landmark",
    "LocalVideo",
    "Store",
    "StoredObject",
    "fetch_to_file",
    "open_store",
    "probe_store",
]
