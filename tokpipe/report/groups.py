"""The commits of a manifest, all of them or one for many, and what each stands for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokpipe.formats.manifest import ManifestEntry, read_entries
from tokpipe.reader import Output

MAX_ENTRIES = 2048
"""Entries name every clip: those of 100 million clips would take half an hour to read."""


@dataclass(frozen=True, slots=True)
class Group:
    """An entry, and those since the one before it that was read."""

    entry: ManifestEntry
    num_entries: int
    clips: int
    """Tokenized by all of them; exact, since the list of shards has it."""
    frames: int


def read_groups(output: Output, most: int = MAX_ENTRIES) -> Iterator[Group]:
    """Yield every entry of a manifest; of a long one a spread of them, and each driver's first.

    Raises:
        CorruptOutput: one is damaged or missing.
    """
    count = output.state.next_seq
    if count <= most:
        seqs: list[int] = list(range(count))
    else:
        seqs = np.linspace(0, count - 1, most).round().astype(int).tolist()
    totals = _Totals(output)
    before: ManifestEntry | None = None
    for entry in read_entries(output.store, seqs):
        if before is not None and entry.seq > before.seq + 1 and entry.writer != before.writer:
            for one in _change(output, before, entry):
                yield totals.group(before, one)
                before = one
        yield totals.group(before, entry)
        before = entry


class _Totals:
    def __init__(self, output: Output) -> None:
        table = output.state.shards
        self._seqs = table.column("seq").to_numpy()
        self._clips, self._frames = (
            np.concatenate([[0], np.cumsum(table.column(name).to_numpy(), dtype=np.int64)])
            for name in ("num_clips", "num_frames")
        )

    def group(self, before: ManifestEntry | None, entry: ManifestEntry) -> Group:
        first = 0 if before is None else before.seq + 1
        begin, end = np.searchsorted(self._seqs, [first, entry.seq + 1])
        return Group(
            entry,
            entry.seq + 1 - first,
            _sum(self._clips, begin, end),
            _sum(self._frames, begin, end),
        )


def _sum(sums: NDArray[np.int64], begin: int, end: int) -> int:
    return int(sums[end] - sums[begin])


def _change(output: Output, before: ManifestEntry, after: ManifestEntry) -> Iterator[ManifestEntry]:
    """Find where one driver ended and another began: entries of a driver follow each other.

    Of several changes in between, the last is found.
    """
    low, high = before.seq, after.seq  # not of the later driver, and of it
    found = {before.seq: before, after.seq: after}
    while high - low > 1:
        middle = (low + high) // 2
        (found[middle],) = read_entries(output.store, [middle])
        if found[middle].writer == after.writer:
            high = middle
        else:
            low = middle
    yield from (found[seq] for seq in (low, high) if before.seq < seq < after.seq)
