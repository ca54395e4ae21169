"""Objects below a URI prefix, in memory, on disk, in S3 and wherever else fsspec reaches."""

from tokpipe.storage.client import StoredObject
from tokpipe.storage.fetch import fetch_to_file
from tokpipe.storage.store import Store, probe_store

__all__ = ["Store", "StoredObject", "fetch_to_file", "probe_store"]
