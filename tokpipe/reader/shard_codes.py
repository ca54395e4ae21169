"""The codes of one shard as one raw array in a local file, with the shard's other columns.

The file holds: codes, padding to 64 bytes, the other columns as an Arrow IPC file, the size of that
part (8 bytes), magic (8 bytes). So ``numpy.memmap(path, "<u2", "r", shape=num_codes)`` reads the
codes too.
"""

import math
import struct
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokpipe.formats.shard import shard_schema
from tokpipe.formats.shard_reader import ShardReader
from tokpipe.types import Codes

_MAGIC = b"tokcode1"
_END = struct.Struct("<Q8s")
_ALIGNMENT = 64  # Arrow reads columns with this alignment without copying them

_COLUMNS = [name for name in shard_schema("uint16").names if name != "codes"]


class ShardCodes:
    """The codes of one shard, chunk by chunk, over a memory-mapped file.

    ``codes[i]`` is a read-only view of shape (t, *grid). It stays valid when the file is removed.
    """

    def __init__(self, path: Path, code_dtype: str, grid: tuple[int, ...]) -> None:
        """Map what ``write_shard_codes`` wrote.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file is truncated or is not a file of codes.
        """
        with pa.memory_map(str(path)) as file:
            whole = file.read_buffer()
        num_bytes = whole.size - _END.size
        if num_bytes < 0:
            raise ValueError(f"{path} has only {whole.size} bytes")
        rows_bytes, magic = _END.unpack(whole.slice(num_bytes))
        if magic != _MAGIC or rows_bytes > num_bytes:
            raise ValueError(f"{path} does not end like a file of codes")
        try:
            table = pa.ipc.open_file(whole.slice(num_bytes - rows_bytes, rows_bytes)).read_all()
        except pa.ArrowException as error:
            raise ValueError(f"{path}: {error}") from error
        self.rows: pa.Table = table.select(_COLUMNS)
        """The other columns of the shard, one row per chunk, also mapped."""
        self.grid = grid
        t = table.column("t").chunk(0).to_numpy()
        self._size = len(t)
        starts: Any = np.append(0, np.cumsum(t, dtype=np.int64)) * math.prod(grid)
        dtype = np.dtype(code_dtype).newbyteorder("<")
        self.flat: Codes = np.frombuffer(whole, dtype, int(starts[-1]))
        """All codes, chunk after chunk."""
        self.blocks: Codes | None = None
        """(chunks, t, h, w) if all chunks have the same ``t``, else None."""
        if bool((t == t[0]).all()):
            self.blocks = self.flat.reshape(self._size, int(t[0]), *grid)
        # A memoryview returns Python integers in a third of an array's time.
        self._t, self._starts = memoryview(t), memoryview(starts)

    @cached_property
    def clip_starts(self) -> NDArray[np.int64]:
        """(clips + 1,) row of each clip's first chunk; last, the number of rows."""
        first = self.rows.column("chunk_index").chunk(0).to_numpy() == 0
        return np.append(np.flatnonzero(first), self._size)

    def __len__(self) -> int:
        """Number of chunks."""
        return self._size

    def __getitem__(self, index: int) -> Codes:
        if self.blocks is not None:
            block: Codes = self.blocks[index]
            return block
        t, start = self._t[index], self._starts[index]
        return self.flat[start : start + t * math.prod(self.grid)].reshape(t, *self.grid)

    def __iter__(self) -> Iterator[Codes]:
        return map(self.__getitem__, range(self._size))


def write_shard_codes(file: IO[bytes], shard: ShardReader) -> None:
    """Decode a shard to ``file``, a row group at a time; CorruptOutput if it is damaged."""
    batches: list[pa.RecordBatch] = []
    for group in range(shard.num_row_groups):
        batch = shard.read_row_group(group)
        flat = batch.column("codes").flatten().to_numpy()
        file.write(np.ascontiguousarray(flat, flat.dtype.newbyteorder("<")).data)
        batches.append(batch.select(_COLUMNS))
    file.write(bytes(-file.tell() % _ALIGNMENT))
    before = file.tell()
    sink = pa.BufferOutputStream()
    # One batch, so each column is one array of the mapped file.
    table = pa.Table.from_batches(batches).combine_chunks()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    file.write(sink.getvalue())
    file.write(_END.pack(file.tell() - before, _MAGIC))
