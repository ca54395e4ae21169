"""The commits of a manifest: all of them, or a sample of a long one with exact totals."""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tokpipe.formats.manifest import ManifestEntry, read_entries
from tokpipe.reader import Output

MAX_ENTRIES = 2048
"""Entries name every clip, so reading those of 100 million clips would take half an hour."""


@dataclass(frozen=True, slots=True)
class Group:
    """An entry that was read, together with the skipped ones just before it."""

    entry: ManifestEntry
    num_entries: int
    clips: int
    """Tokenized clips of all of these entries: exact, from the list of shards."""
    frames: int


def read_groups(output: Output, max_entries: int = MAX_ENTRIES) -> Iterator[Group]:
    """Yield groups that cover the whole manifest, in order.

    Of a manifest with more than ``max_entries``, evenly spaced entries are read, and those
    around each change of driver. Raises CorruptOutput as ``iter_entries`` does.
    """
    shards = output.state.shards
    seqs, clips, frames = (
        shards.column(name).to_numpy() for name in ("seq", "num_clips", "num_frames")
    )
    start = 0
    for entry in _entries(output, max_entries):
        stop = entry.seq + 1
        first, last = np.searchsorted(seqs, [start, stop])
        yield Group(
            entry, stop - start, int(clips[first:last].sum()), int(frames[first:last].sum())
        )
        start = stop


def _entries(output: Output, max_entries: int) -> Iterator[ManifestEntry]:
    count = output.state.next_seq
    seqs = np.linspace(0, count - 1, min(count, max_entries)).round().astype(int).tolist()
    before: ManifestEntry | None = None
    for entry in read_entries(output.store, seqs):
        if before is not None and entry.writer != before.writer:
            yield from _around_change(output, before, entry)
        yield entry
        before = entry


def _around_change(
    output: Output, before: ManifestEntry, after: ManifestEntry
) -> Iterator[ManifestEntry]:
    """Yield the last entry before the driver of ``after``, and the first of that driver.

    Entries of a driver follow each other, so a binary search finds them. Drivers that began and
    ended between ``before`` and ``after`` are missed.
    """

    def is_later(seq: int) -> bool:
        (entry,) = read_entries(output.store, [seq])
        return entry.writer == after.writer

    between = range(before.seq + 1, after.seq)
    first = before.seq + 1 + bisect_left(between, True, key=is_later)
    yield from read_entries(output.store, [seq for seq in (first - 1, first) if seq in between])
