"""Codes on local disk: each shard is verified and decoded once, then memory-mapped."""

import contextlib
import fcntl
import os
import re
import uuid
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokpipe.errors import ConfigError, StorageError
from tokpipe.formats.checks import damaged
from tokpipe.formats.tokenizer_spec import TokenizerSpec
from tokpipe.reader.output import Output
from tokpipe.reader.shard_codes import Codes, ShardCodes, write_shard_codes
from tokpipe.reader.values import ShardInfo
from tokpipe.storage.local_files import TEMPORARY_FOLDER, remove_abandoned
from tokpipe.storage.read_ahead import read_ahead

_MAPPED_SHARDS = 16_384  # The kernel allows a process 65,530 maps

_SUFFIX = ".codes"


class CodeCache:
    """The shards of an output as arrays, in the order of the manifest.

    The first access to a shard fetches, verifies and decodes it into a raw file in ``folder``,
    named by its SHA-256. The processes of a node, several outputs and later runs can share a
    folder. If two processes need the same shard, one makes it and the other waits. Files appear
    whole, by renaming, so a killed process leaves no partial file.

    Args:
        output: what to read. Shards are verified even if it was opened with ``verify=False``.
        folder: on a local disk. A code takes 2 bytes there, or 4 if there are more than 65,536.
        max_bytes: limit on the size of the folder, not counting files that are being written. The
            least recently opened files are removed; their space is free once no process maps them.
        read_ahead: shards that iterating prepares in advance, each in a thread and in memory.
        allow_partial: without it, an output whose job has not finished raises IncompleteOutput.
    """

    def __init__(
        self,
        output: Output,
        folder: str | Path,
        *,
        max_bytes: int | None = None,
        read_ahead: int = 2,
        allow_partial: bool = False,
    ) -> None:
        if not allow_partial and not output.follow:
            output.check_complete("training would miss clips", "allow_partial=True to CodeCache")
        self.output = output
        self._folder = Path(folder)
        self._max_bytes = max_bytes
        self._read_ahead = read_ahead
        self._starts = output.shards.row_starts
        self._mapped = lru_cache(_MAPPED_SHARDS)(self._find)
        self._temporary = self._folder / TEMPORARY_FOLDER
        self._locks = self._folder / "locks"
        with self._disk_trouble():
            self._temporary.mkdir(parents=True, exist_ok=True)
            self._locks.mkdir(exist_ok=True)
        remove_abandoned(self._folder)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_mapped": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._mapped = lru_cache(_MAPPED_SHARDS)(self._find)

    @property
    def num_rows(self) -> int:
        """Number of chunks in all shards."""
        return int(self._starts[-1])

    @property
    def tokenizer(self) -> TokenizerSpec:
        return self.output.tokenizer

    def __len__(self) -> int:
        """Number of shards."""
        return len(self.output.shards)

    def __iter__(self) -> Iterator[ShardCodes]:
        """Yield every shard, preparing the next ones meanwhile."""
        return read_ahead(self.shard, range(len(self)), self._read_ahead)

    def shard(self, number: int) -> ShardCodes:
        """Return one shard, from the cache if it is there.

        Raises:
            CorruptOutput: the shard is not what the manifest lists.
            ConfigError: it alone exceeds ``max_bytes``.
            StorageError: the output's store or the local disk failed.
        """
        return self._mapped(number)

    def take(self, rows: NDArray[np.int64]) -> Codes:
        """Return the codes of the given chunks as one new array, (len(rows), t, h, w).

        Args:
            rows: positions among all chunks, 0 <= row < ``num_rows``, in any order.

        Raises:
            ValueError: the chunks differ in shape, or ``rows`` is empty.
            IndexError: a row is out of range.
        """
        found = np.searchsorted(self._starts, rows, side="right") - 1
        numbers: list[int] = found.tolist()
        if numbers and not 0 <= min(numbers) <= max(numbers) < len(self):
            raise IndexError(f"some of the {len(rows)} rows are outside 0 to {self.num_rows - 1}")
        places = zip(numbers, (rows - self._starts[found]).tolist(), strict=True)
        shards = {number: self.shard(number) for number in set(numbers)}
        even = [shard.blocks for shard in shards.values()]
        shapes = {None if blocks is None else blocks.shape[1:] for blocks in even}
        if len(shapes) == 1 and None not in shapes:
            # Concatenating flat rows takes half the time of (t, h, w) blocks.
            flat = {number: shard.flat.reshape(len(shard), -1) for number, shard in shards.items()}
            blocks = [flat[number][row] for number, row in places]
        else:
            blocks = [shards[number][row] for number, row in places]
            shapes = {block.shape for block in blocks}
            if len(shapes) != 1:
                raise ValueError(
                    f"the {len(rows)} chunks have {len(shapes)} different shapes: read them one by "
                    "one"
                )
        joined: Codes = np.concatenate(blocks).reshape(len(rows), *(shapes.pop() or ()))
        return joined

    def _find(self, number: int) -> ShardCodes:
        info = self.output.shards[number]
        if not re.fullmatch("[0-9a-f]{64}", info.sha256):  # it names files here
            raise damaged(info.uri, f"its SHA-256 in the manifest is {info.sha256!r}")
        path = self._folder / f"{info.sha256}{_SUFFIX}"
        with contextlib.suppress(FileNotFoundError, ValueError):
            return self._open(path, info)
        with self._disk_trouble(), (self._locks / info.sha256[:2]).open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released when the process ends
            with contextlib.suppress(FileNotFoundError, ValueError):
                return self._open(path, info)  # another process made it
            return self._make(path, info)

    def _open(self, path: Path, info: ShardInfo) -> ShardCodes:
        codes = ShardCodes(path, self.output.tokenizer.code_dtype, info.grid)
        with contextlib.suppress(OSError):  # removed meanwhile, or another user's
            os.utime(path)  # eviction removes the least recently used
        return codes

    def _make(self, path: Path, info: ShardInfo) -> ShardCodes:
        itemsize = np.dtype(self.output.tokenizer.code_dtype).itemsize
        self._make_room(info, info.num_codes * itemsize)  # before the shard is fetched
        temporary = self._temporary / uuid.uuid4().hex
        try:
            with temporary.open("xb") as file:
                write_shard_codes(file, self.output.verified_shard(info))
                file.flush()
                os.fsync(file.fileno())  # a power cut could keep the name but lose the bytes
            self._make_room(info, temporary.stat().st_size)
            codes = self._open(temporary, info)  # before another process can remove it
            os.replace(temporary, path)  # noqa: PTH105
        finally:
            temporary.unlink(missing_ok=True)
        return codes

    def _make_room(self, info: ShardInfo, num_bytes: int) -> None:
        if self._max_bytes is None:
            return
        if num_bytes > self._max_bytes:
            raise ConfigError(
                f"{self._folder}: the codes of {info.uri} take {num_bytes} bytes, more than the "
                f"max_bytes={self._max_bytes} of the cache. Raise max_bytes"
            )
        found = []
        for path in self._folder.glob(f"*{_SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        room = self._max_bytes - num_bytes - sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if room >= 0:
                return
            path.unlink(missing_ok=True)
            room += size
            self._mapped.cache_clear()  # unmaps it too, or its space stays taken

    @contextlib.contextmanager
    def _disk_trouble(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"{self._folder}: cannot write the code cache ({error.strerror}). Without it, "
                "every epoch would decode all shards again. Free disk space, set max_bytes, or "
                "choose another folder"
            ) from error
