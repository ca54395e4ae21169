"""The rows of one shard as Arrow IPC in a local file, to be memory-mapped."""

from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokpipe.formats.shard_reader import ShardReader
from tokpipe.types import Codes

_JOINED = 8  # Row groups to a record batch, which takes 10 KB of every process that maps the file


class ShardCodes:
    """The codes of one shard, chunk by chunk, over a memory-mapped file.

    ``codes[i]`` is a read-only view of shape (t, *grid). It stays valid when the file is removed.
    """

    def __init__(self, path: Path, grid: tuple[int, ...]) -> None:
        """Map what ``write_shard_codes`` wrote; ValueError if the file is truncated."""
        self.rows: pa.Table = mapped(path).read_all()  # The shard's columns, one row per chunk
        self.grid = grid
        lists = self.rows.column("codes").chunks  # One per record batch
        # A memoryview returns Python integers in a third of an array's time.
        self._batches = [(memoryview(x.offsets.to_numpy()), x.values.to_numpy()) for x in lists]
        self._starts = [0, *accumulate(map(len, lists))]

    @cached_property
    def clip_starts(self) -> NDArray[np.int64]:
        """(clips + 1,) row of each clip's first chunk; last, the number of rows."""
        first = self.rows.column("chunk_index").to_numpy() == 0
        return np.append(np.flatnonzero(first), len(self))

    def __len__(self) -> int:
        """Number of chunks."""
        return self._starts[-1]

    def __getitem__(self, index: int) -> Codes:
        index = range(len(self))[index]
        batch = bisect_right(self._starts, index) - 1
        row = index - self._starts[batch]
        offsets, codes = self._batches[batch]
        block: Codes = codes[offsets[row] : offsets[row + 1]].reshape(-1, *self.grid)
        return block

    def __iter__(self) -> Iterator[Codes]:
        return map(self.__getitem__, range(len(self)))

    def clip(self, number: int) -> tuple[str, Codes]:
        """Return a clip's id and codes (t, h, w), its chunks concatenated in time."""
        first, last = self.clip_starts[number : number + 2].tolist()
        clip_id: str = self.rows.column("clip_id")[first].as_py()
        blocks: list[Any] = [self[row] for row in range(first, last)]
        return clip_id, blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def write_shard_codes(file: IO[bytes], shard: ShardReader) -> None:
    """Decode a shard to ``file``, a few row groups at a time; CorruptOutput if it is damaged."""
    number = shard.num_row_groups
    with pa.ipc.new_file(file, shard.schema) as writer:
        for first in range(0, number, _JOINED):
            groups = range(first, min(first + _JOINED, number))
            table = pa.Table.from_batches(map(shard.read_row_group, groups))
            writer.write_table(table.combine_chunks())


def mapped(path: Path) -> pa.ipc.RecordBatchFileReader:
    """Map an Arrow IPC file; FileNotFoundError if there is none, ValueError if it is not whole."""
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file.read_buffer())
