"""Holds shards and side tables against what the manifest lists of them, several at a time."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Literal, Self

from tokpipe.audit.findings import Findings, Kind
from tokpipe.audit.listing import Listing
from tokpipe.errors import CorruptOutput, NotFound, TokpipeError
from tokpipe.formats.checks import damaged
from tokpipe.formats.shard import ShardMetadata
from tokpipe.formats.shard_reader import check_shard
from tokpipe.formats.side_table import read_side_table
from tokpipe.storage.store import Store
from tokpipe.types import Receipt

Depth = Literal["manifest", "sizes", "bytes"]
"""The manifest alone; that listed objects are there in their size; or every byte and code."""

_AT_ONCE = 4
"""Shards in memory: at most half a GB by default settings."""


class ObjectChecks:
    """Checks listed objects on threads of its own, which it waits for at its end.

    Args:
        metadata: what every shard must say of itself.
    """

    def __init__(
        self,
        store: Store,
        listing: Listing,
        metadata: ShardMetadata,
        depth: Depth,
        findings: Findings,
    ) -> None:
        self._store = store
        self._listing = listing
        self._metadata = metadata
        self._depth = depth
        self._findings = findings
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="audit")
        self._waiting: deque[Future[None]] = deque()
        self._lock = threading.Lock()
        self.num_shards = 0
        self.num_bytes = 0
        """Read so far."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                while self._waiting:
                    self._waiting.popleft().result()
        finally:
            self._pool.shutdown(cancel_futures=True)

    def check(self, receipt: Receipt) -> None:
        """Check a shard and its side table, soon; waits while many are on their way."""
        if self._depth == "manifest":
            return
        if len(self._waiting) >= 2 * _AT_ONCE:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._check, receipt))

    def _check(self, receipt: Receipt) -> None:
        try:
            if self._depth == "sizes":
                self._check_size(receipt.shard, receipt.size_bytes, "shard")
                self._check_size(receipt.side_table, receipt.side_table_size_bytes, "side_table")
            else:
                self._check_shard(receipt)
                self._check_side_table(receipt)
        except TokpipeError:
            raise
        except Exception as error:
            # What was made to deceive may trip a parser up in ways of its own (a key that is no
            # key, a file that Parquet cannot be). That is a defect like others, not the end.
            where = f"{self._store.uri}/{receipt.shard}"
            problem = f"checking it failed with {type(error).__name__}: {error}"
            self._findings.add("shard", where, damaged(where, problem))
        with self._lock:
            self.num_shards += 1
            if self._depth == "bytes":
                self.num_bytes += receipt.size_bytes + receipt.side_table_size_bytes

    def _check_size(self, key: str, size_bytes: int, kind: Kind) -> None:
        found = self._listing.data.get(key)
        # Listed since, or at another place: only asking for the object itself is sure.
        size = self._store.size(key) if found is None else found.size_bytes
        if size is None:
            self._missing(key)
        elif size != size_bytes:
            uri = self._store.uri_of(key)
            problem = f"it has {size} bytes where the manifest lists {size_bytes}"
            self._findings.add(kind, uri, damaged(uri, problem))

    def _check_shard(self, receipt: Receipt) -> None:
        uri = self._store.uri_of(receipt.shard)
        try:
            data = self._store.get(receipt.shard)
            check_shard(uri, data, receipt, self._metadata)
        except NotFound:
            self._missing(receipt.shard)
        except CorruptOutput as error:
            self._findings.add("shard", uri, error)

    def _check_side_table(self, receipt: Receipt) -> None:
        uri = self._store.uri_of(receipt.side_table)
        try:
            table = read_side_table(
                uri,
                self._store.get(receipt.side_table),
                size_bytes=receipt.side_table_size_bytes,
                sha256_hex=receipt.side_table_sha256,
            )
            columns = ["clip_id", "plan_row", "segment", "n_segments", "source_uri"]
            found = list(zip(*(table.column(name).to_pylist() for name in columns), strict=True))
            clips = sorted(receipt.clips, key=lambda clip: clip.clip_id)
            listed = [(c.clip_id, c.row, c.segment, c.num_segments, c.source_uri) for c in clips]
            if found != listed:
                raise damaged(uri, f"its {len(found)} clips are not those listed of its shard")
        except NotFound:
            self._missing(receipt.side_table)
        except CorruptOutput as error:
            self._findings.add("side_table", uri, error)

    def _missing(self, key: str) -> None:
        uri = self._store.uri_of(key)
        self._findings.add(
            "object_missing", uri, damaged(uri, "it is missing, though the manifest lists it")
        )
