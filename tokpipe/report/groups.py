"""The commits of a manifest: all of them, or a sample of a long one with exact totals."""

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


def read_groups(output: Output) -> Iterator[Group]:
    """Yield groups that cover the whole manifest, in order.

    Of a manifest with more than ``MAX_ENTRIES``, evenly spaced entries are read. Drivers that
    began and ended between two of these are missed. Raises CorruptOutput as ``iter_entries`` does.
    """
    count = output.state.next_seq
    chosen = np.linspace(0, count - 1, min(count, MAX_ENTRIES)).round().astype(int).tolist()
    shards = output.state.shards
    seqs, clips, frames = (
        shards.column(name).to_numpy() for name in ("seq", "num_clips", "num_frames")
    )
    start = 0
    for entry in read_entries(output.store, chosen):
        stop = entry.seq + 1
        first, last = np.searchsorted(seqs, [start, stop])
        yield Group(
            entry, stop - start, int(clips[first:last].sum()), int(frames[first:last].sum())
        )
        start = stop
