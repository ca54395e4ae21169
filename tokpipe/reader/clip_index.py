"""Finds the shard of a clip. Takes 12 bytes per clip, so 100 million clips fit in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from tokpipe.formats.manifest import ManifestEntry


class ClipIndex:
    """Finds shards by clip id, using a 64-bit hash of the id.

    Two ids may share a hash, so look into the shard to be sure.
    """

    def __init__(self, hashes: NDArray[np.uint64], shards: NDArray[np.int32]) -> None:
        order = np.argsort(hashes)
        self._hashes, self._shards = hashes[order], shards[order]

    @classmethod
    def of_entries(cls, entries: Iterable[ManifestEntry]) -> ClipIndex:
        """Index the shards of a manifest, numbered in the order in which it lists them."""
        hashes: list[NDArray[np.uint64]] = [np.empty(0, np.uint64)]
        sizes: list[int] = []
        for entry in entries:
            for receipt in entry.shards:
                packed = b"".join(_hash(clip.clip_id) for clip in receipt.clips)
                hashes.append(np.frombuffer(packed, np.uint64))
                sizes.append(len(receipt.clips))
        return cls(np.concatenate(hashes), np.repeat(np.arange(len(sizes), dtype=np.int32), sizes))

    def shards_of(self, clip_id: str) -> list[int]:
        """Return the numbers of the shards that may hold the clip; empty if none does."""
        wanted = np.frombuffer(_hash(clip_id), np.uint64)
        first = int(np.searchsorted(self._hashes, wanted, side="left")[0])
        last = int(np.searchsorted(self._hashes, wanted, side="right")[0])
        return [int(shard) for shard in self._shards[first:last]]


def _hash(clip_id: str) -> bytes:
    return hashlib.blake2b(clip_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
