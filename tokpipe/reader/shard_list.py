"""The shards of an output as a sequence, over the manifest's table of shards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokpipe.reader.values import ShardInfo
from tokpipe.storage.store import Store


class ShardList(Sequence[ShardInfo]):
    """Shards in the order in which the manifest lists them. Holds no object per shard."""

    def __init__(self, store: Store, table: pa.Table) -> None:
        self._store = store
        self._table = table

    def __len__(self) -> int:
        num: int = self._table.num_rows
        return num

    @property
    def row_starts(self) -> NDArray[np.int64]:
        """(shards + 1,) position of each shard's first row among all rows; last, their number."""
        counts = self._table.column("num_rows").to_numpy()
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])

    @property
    def clip_counts(self) -> NDArray[np.int64]:
        """(shards,) clips of each shard."""
        counts: NDArray[np.int64] = self._table.column("num_clips").to_numpy()
        return counts

    @overload
    def __getitem__(self, index: int) -> ShardInfo: ...
    @overload
    def __getitem__(self, index: slice) -> ShardList: ...
    def __getitem__(self, index: int | slice) -> ShardInfo | ShardList:
        if isinstance(index, slice):
            rows = pa.array(range(len(self))[index], pa.int64())
            return ShardList(self._store, self._table.take(rows))
        row = self._table.slice(range(len(self))[index], 1).to_pylist()[0]
        return ShardInfo(
            key=row["shard"],
            uri=self._store.uri_of(row["shard"]),
            size_bytes=row["size_bytes"],
            sha256=row["sha256"],
            num_rows=row["num_rows"],
            num_codes=row["num_codes"],
            num_frames=row["num_frames"],
            num_clips=row["num_clips"],
            grid=(row["h"], row["w"]),
            side_table=row["side_table"],
            side_table_uri=self._store.uri_of(row["side_table"]),
            side_table_size_bytes=row["side_table_size_bytes"],
            side_table_sha256=row["side_table_sha256"],
        )
