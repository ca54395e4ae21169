"""Codes on local disk: every shard is verified and decoded once, and a mapped array ever after."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tokpipe.errors import ConfigError, StorageError
from tokpipe.formats.tokenizer_spec import TokenizerSpec
from tokpipe.reader.output import Output
from tokpipe.reader.shard_codes import Codes, ShardCodes, write_shard_codes
from tokpipe.reader.values import ShardInfo
from tokpipe.storage.read_ahead import read_ahead

_MAPPED_SHARDS = 16_384
"""Kept open at once: the kernel allows a process 65,530 maps."""

_ABANDONED_AFTER_S = 24 * 3600.0
_SUFFIX = ".codes"


class CodeCache:
    """The shards of an output as arrays, in the order of the manifest.

    A shard is fetched, verified and decoded when it is first asked for, and stays in ``folder`` as
    one raw file called after its SHA-256. So the processes of a node, several outputs and later
    runs may share a folder; of two that want one shard, one waits for the other. Files appear
    whole, by renaming, so that whoever is killed leaves nothing half made.

    Args:
        output: what to read. Shards are verified even if it was opened with ``verify=False``.
        folder: on a local disk; each code takes 2 bytes there, or 4 with more than 65,536 codes.
        max_bytes: most that the folder may hold, besides files that are just being written. What
            was not opened for longest is removed; its space is free once no process maps it.
        read_ahead: shards that iterating makes before they are asked for, each in a thread and
            in memory.
    """

    def __init__(
        self,
        output: Output,
        folder: str | Path,
        *,
        max_bytes: int | None = None,
        read_ahead: int = 2,
    ) -> None:
        self._output = output
        self._folder = Path(folder)
        self._max_bytes = max_bytes
        self._read_ahead = read_ahead
        self._starts = output.shards.row_starts
        self._mapped: OrderedDict[int, ShardCodes] = OrderedDict()
        self._numbers: dict[str, int] = {}
        """Of shards that are or were mapped, by SHA-256."""
        self._lock = threading.Lock()
        self._temporary, self._locks = self._folder / "tmp", self._folder / "locks"
        with self._disk_trouble():
            self._temporary.mkdir(parents=True, exist_ok=True)
            self._locks.mkdir(exist_ok=True)
            _remove_abandoned(self._temporary)

    @property
    def output(self) -> Output:
        """What is read."""
        return self._output

    @property
    def num_rows(self) -> int:
        """Chunks of all shards together."""
        return int(self._starts[-1])

    @property
    def tokenizer(self) -> TokenizerSpec:
        """What the codes mean."""
        return self._output.tokenizer

    @property
    def clip_counts(self) -> NDArray[np.int64]:
        """(shards,) clips of each shard."""
        return self._output.shards.clip_counts

    def __len__(self) -> int:
        """How many shards there are."""
        return len(self._output.shards)

    def __iter__(self) -> Iterator[ShardCodes]:
        """Yield every shard, while the next ones are made ready."""
        return read_ahead(self.shard, range(len(self)), self._read_ahead)

    def shard(self, number: int) -> ShardCodes:
        """Return one shard, from the cache if it is there.

        Raises:
            CorruptOutput: it is not what the manifest lists.
            ConfigError: it alone is larger than ``max_bytes``.
            StorageError: the output's store or the local disk failed.
        """
        with self._lock:
            known = self._mapped.get(number)
            if known is not None:
                self._mapped.move_to_end(number)
                return known
        info = self._output.shards[number]
        codes = self._find(info)
        with self._lock:
            self._mapped[number] = codes
            self._numbers[info.sha256] = number
            if len(self._mapped) > _MAPPED_SHARDS:
                self._mapped.popitem(last=False)
        return codes

    def take(self, rows: NDArray[np.int64]) -> Codes:
        """Return the codes of some chunks as one new array, (len(rows), t, h, w).

        Args:
            rows: positions among all chunks, 0 <= row < ``num_rows``, in any order.

        Raises:
            ValueError: the chunks have several shapes, or there are none.
            IndexError: a row is not there.
        """
        found = np.searchsorted(self._starts, rows, side="right") - 1
        numbers: list[int] = found.tolist()
        if numbers and not 0 <= min(numbers) <= max(numbers) < len(self):
            raise IndexError(f"some of {len(rows)} rows are outside the {self.num_rows} there are")
        places = zip(numbers, (rows - self._starts[found]).tolist(), strict=True)
        shards = {number: self.shard(number) for number in set(numbers)}
        shapes = {shard.shape for shard in shards.values()}
        if len(shapes) == 1 and None not in shapes:
            # Rows that are flat are joined in half the time that blocks of three sides take.
            flat = {number: shard.flat_blocks for number, shard in shards.items()}
            blocks = [flat[number][row] for number, row in places]
        else:
            blocks = [shards[number][row] for number, row in places]
            shapes = {block.shape for block in blocks}
            if len(shapes) != 1:
                raise ValueError(f"{len(rows)} chunks have not one shape: read them one by one")
        joined: Codes = np.concatenate(blocks).reshape(len(rows), *(shapes.pop() or ()))
        return joined

    def _find(self, info: ShardInfo) -> ShardCodes:
        path = self._folder / f"{info.sha256}{_SUFFIX}"
        with contextlib.suppress(FileNotFoundError, ValueError):
            return self._open(path, info)
        with self._disk_trouble(), (self._locks / info.sha256[:2]).open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # ends with the process, however that ends
            with contextlib.suppress(FileNotFoundError, ValueError):
                return self._open(path, info)  # made while this one waited
            return self._make(path, info)

    def _open(self, path: Path, info: ShardInfo) -> ShardCodes:
        codes = ShardCodes(path, self._output.tokenizer.code_dtype, info.grid)
        with contextlib.suppress(OSError):  # removed since, or not ours
            os.utime(path)  # so that it is known which were not used for longest
        return codes

    def _make(self, path: Path, info: ShardInfo) -> ShardCodes:
        self._check_size(info, info.num_codes * self._output.tokenizer.numpy_dtype.itemsize)
        temporary = self._temporary / uuid.uuid4().hex
        try:
            with temporary.open("xb") as file:
                write_shard_codes(file, self._output.verified_shard(info))
                file.flush()
                # A power cut may keep the name and lose the bytes.
                os.fsync(file.fileno())
            self._make_room(info, temporary.stat().st_size)
            codes = self._open(temporary, info)  # before another process may remove it
            os.replace(temporary, path)  # noqa: PTH105
        finally:
            temporary.unlink(missing_ok=True)
        return codes

    def _make_room(self, info: ShardInfo, num_bytes: int) -> None:
        if self._max_bytes is None:
            return
        self._check_size(info, num_bytes)
        found = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name.endswith(_SUFFIX):
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat()
                        found.append((status.st_mtime_ns, status.st_size, Path(entry.path)))
        room = self._max_bytes - num_bytes - sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if room >= 0:
                return
            path.unlink(missing_ok=True)
            room += size
            self._forget(path)

    def _forget(self, path: Path) -> None:
        """Let go of a removed file, or its space would stay taken."""
        with self._lock:
            number = self._numbers.get(path.name.removesuffix(_SUFFIX))
            if number is not None:
                self._mapped.pop(number, None)

    def _check_size(self, info: ShardInfo, num_bytes: int) -> None:
        if self._max_bytes is not None and num_bytes > self._max_bytes:
            raise ConfigError(
                f"{self._folder}: may hold {self._max_bytes} bytes, and the codes of {info.uri} "
                f"alone take {num_bytes}. Give the cache a larger max_bytes."
            )

    @contextlib.contextmanager
    def _disk_trouble(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"{self._folder}: the cache of codes cannot be written ({error.strerror}). Without "
                "it every epoch would decode everything again. Free the disk, set max_bytes, or "
                "choose another folder."
            ) from error


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed processes left more than a day ago."""
    oldest_s = time.time() - _ABANDONED_AFTER_S
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < oldest_s:
                path.unlink()
