"""Compares shards and side tables with what the manifest lists, several at a time."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from tokpipe.audit.findings import Findings, Kind
from tokpipe.audit.leftovers import Listing
from tokpipe.errors import CorruptOutput, NotFound, TokpipeError
from tokpipe.formats.checks import damaged
from tokpipe.formats.shard import ShardMetadata
from tokpipe.formats.shard_reader import check_shard
from tokpipe.formats.side_table import read_side_table
from tokpipe.storage.read_ahead import read_ahead
from tokpipe.storage.store import Store
from tokpipe.types import Receipt

Depth = Literal["manifest", "sizes", "bytes"]
"""Check the manifest alone, or also the size of each listed object, or every byte and code."""

_PARALLEL_CHECKS = 4  # Shards in memory: at most 0.5 GB with default settings


@dataclass(slots=True)
class ObjectChecks:
    """Checks the objects that the manifest lists. Every shard must have this ``metadata``."""

    store: Store
    listing: Listing
    metadata: ShardMetadata
    depth: Depth
    findings: Findings
    num_shards: int = 0  # Shards checked so far, with their side tables
    num_bytes: int = 0  # Bytes read so far

    def check_all(self, receipts: Iterable[Receipt]) -> None:
        """Check each shard and its side table."""
        if self.depth == "manifest":
            deque(receipts, maxlen=0)
            return
        for receipt in read_ahead(self._check, receipts, _PARALLEL_CHECKS):
            self.num_shards += 1
            if self.depth == "bytes":
                self.num_bytes += receipt.size_bytes + receipt.side_table_size_bytes

    def _check(self, receipt: Receipt) -> Receipt:
        objects: list[tuple[Kind, str, int]] = [
            ("shard", receipt.shard, receipt.size_bytes),
            ("side_table", receipt.side_table, receipt.side_table_size_bytes),
        ]
        for kind, key, size_bytes in objects:
            uri = f"{self.store.uri}/{key}"
            try:
                if self.depth == "sizes":
                    self._check_size(uri, key, size_bytes)
                elif kind == "shard":
                    check_shard(uri, self.store.get(key), receipt, self.metadata)
                else:
                    _check_side_table(uri, self.store.get(key), receipt)
            except NotFound:
                problem = "it is missing, although the manifest lists it"
                self.findings.add_damage("object_missing", uri, problem)
            except CorruptOutput as error:
                self.findings.add(kind, uri, error)
            except TokpipeError:
                raise
            except Exception as error:
                # A malicious manifest or file can make a parser raise anything. That is one more
                # defect, and the audit continues.
                problem = f"checking it failed with {type(error).__name__}: {error}"
                self.findings.add_damage(kind, uri, problem)
        return receipt

    def _check_size(self, uri: str, key: str, size_bytes: int) -> None:
        found = self.listing.data.get(key)
        # An object that was not listed may be newer than the listing: ask the store for it.
        size = self.store.size(key) if found is None else found.size_bytes
        if size is None:
            raise NotFound(uri)
        if size != size_bytes:
            raise damaged(uri, f"it has {size} bytes, but the manifest lists {size_bytes}")


def _check_side_table(uri: str, data: bytes, receipt: Receipt) -> None:
    sha256, size_bytes = receipt.side_table_sha256, receipt.side_table_size_bytes
    table = read_side_table(uri, data, size_bytes=size_bytes, sha256_hex=sha256)
    columns = ["clip_id", "plan_row", "segment", "n_segments", "source_uri"]
    found = list(zip(*(table.column(name).to_pylist() for name in columns), strict=True))
    clips = sorted(receipt.clips, key=lambda clip: clip.clip_id)
    if found != [(c.clip_id, c.row, c.segment, c.num_segments, c.source_uri) for c in clips]:
        raise damaged(uri, f"its {len(found)} clips are not those listed for its shard")
