"""Codes on local disk: each shard is verified and decoded once, then memory-mapped."""

import hashlib
from collections.abc import Iterator, Sequence
from copy import copy
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokpipe.formats.shard import TokenizerSpec
from tokpipe.reader.cache_folder import CacheFolder
from tokpipe.reader.columns import ShardColumns, write_columns
from tokpipe.reader.output import Output
from tokpipe.reader.shard_codes import ShardCodes, write_shard_codes
from tokpipe.reader.values import ShardList
from tokpipe.storage.read_ahead import read_ahead

_AHEAD = 2  # Shards that iterating prepares, each in a thread and in memory
_MAPPED_SHARDS = 16_384  # The kernel allows a process 65,530 maps
_ROW_BYTES = 256  # What the columns of a chunk take at most, other than codes
_UNPACKED = 5  # Times that columns take of the space of their side table, at most


class CodeCache:
    """The shards of an output as arrays, in the order of the manifest.

    The first access to a shard fetches, verifies and decodes it into an Arrow file in ``folder``,
    named by its SHA-256. The processes of a node, several outputs and later runs can share a
    folder. If two processes need the same shard, one makes it and the other waits. Files appear
    whole, by renaming, so a killed process leaves no partial file. Columns of side tables get files
    in the same way.

    Args:
        output: what to read.
        folder: on a local disk. A code takes 2 bytes there, or 4 if there are more than 65,536.
        max_bytes: limit on the size of the folder, not counting files that are being written. The
            least recently opened files are removed; their space is free once no process maps them.
        allow_partial: without it, an output whose job has not finished raises IncompleteOutput.
    """

    def __init__(
        self,
        output: Output,
        folder: str | Path,
        *,
        max_bytes: int | None = None,
        allow_partial: bool = False,
    ) -> None:
        if not allow_partial and not output.follow:
            output.check_complete("training would miss clips", "allow_partial=True to CodeCache")
        self.output = output
        self.folder = CacheFolder(Path(folder), max_bytes, self._unmap)

    @cached_property
    def _mapped(self) -> Any:
        """The files that this process maps, by shard and names of columns: None for its codes."""
        number = _MAPPED_SHARDS
        if (limit := self.folder.max_bytes) is not None:  # removed files take space until then
            smallest = int(self.sizes().min(initial=limit))
            number = min(number, max(1, limit // max(1, smallest)))
        return lru_cache(number)(self._find)

    def earlier(self, num_shards: Sequence[int]) -> "CodeCache":
        """Return a cache of only the first shards: so many of each output that is joined."""
        output, limit = copy(self.output), self.folder.max_bytes
        counts = zip(output.joined, num_shards, strict=True)
        output.shards = ShardList(*((one.store, one.state.shards[:n]) for one, n in counts))
        return CodeCache(output, self.folder.path, max_bytes=limit, allow_partial=True)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_mapped"}

    def sizes(self, columns: Sequence[str] = ()) -> NDArray[np.int64]:
        """(shards,) about how many bytes each shard takes on disk, with these columns."""
        field, code_bytes = self.output.shards.field, np.dtype(self.tokenizer.code_dtype).itemsize
        sizes: NDArray[np.int64] = code_bytes * field("num_codes") + _ROW_BYTES * field("num_rows")
        return sizes + _UNPACKED * field("side_table_size_bytes") if columns else sizes

    @property
    def tokenizer(self) -> TokenizerSpec:
        return self.output.tokenizer

    def __len__(self) -> int:
        """Number of shards."""
        return len(self.output.shards)

    def __iter__(self) -> Iterator[ShardCodes]:
        """Yield every shard, preparing the next ones meanwhile."""
        return read_ahead(self.shard, range(len(self)), _AHEAD)

    def shard(self, number: int) -> ShardCodes:
        """Return one shard, from the cache if it is there.

        Raises:
            CorruptOutput: the shard is not what the manifest lists.
            ConfigError: it alone exceeds ``max_bytes``.
            StorageError: the output's store or the local disk failed.
        """
        codes: ShardCodes = self._mapped(number, None)
        return codes

    def columns(self, number: int, names: tuple[str, ...]) -> ShardColumns:
        """Return columns of one shard's side table, from the cache if they are there.

        Raises:
            CorruptOutput: the side table is not what the manifest lists.
        """
        columns: ShardColumns = self._mapped(number, names)
        return columns

    def _unmap(self) -> None:
        """Let go of all files: of those that were removed, the space is taken until then."""
        self._mapped.cache_clear()

    def _find(self, number: int, names: tuple[str, ...] | None) -> ShardCodes | ShardColumns:
        info = self.output.shards[number]
        if names is None:
            return self.folder.get(
                info.uri,
                info.sha256,
                ".arrow",
                lambda path: ShardCodes(path, (*info.grid, *self.tokenizer.axes)),
                lambda file: write_shard_codes(file, self.output.verified_shard(info)),
                min_bytes=info.num_codes * np.dtype(self.tokenizer.code_dtype).itemsize,
            )
        which = hashlib.sha256("\0".join(names).encode()).hexdigest()[:16]
        return self.folder.get(
            info.side_table_uri,
            info.side_table_sha256,
            f".{which}.columns",
            lambda path: ShardColumns(path, info.side_table_uri),
            lambda file: write_columns(file, self.output, info, names),
        )
