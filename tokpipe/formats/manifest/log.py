"""The log of entries: appends one, finds the end, and streams them in order."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from functools import partial

from tokpipe.errors import NotFound
from tokpipe.formats.checks import damaged
from tokpipe.formats.layout import entry_key
from tokpipe.formats.manifest.entry import ManifestEntry
from tokpipe.storage.read_ahead import read_ahead
from tokpipe.storage.store import Store
from tokpipe.types import Rejected

READ_AHEAD = 15
"""Entries fetched while one is used: a store takes tens of milliseconds to return one."""


def append(store: Store, entry: ManifestEntry) -> bool:
    """Commit an entry. Return False if another driver's entry already has its number.

    After False, this driver's view of what is committed is stale.
    """
    return store.create(entry_key(entry.seq), entry.to_json())


def count_entries(store: Store, known: int = 0) -> int:
    """Return the number of entries, of which ``known`` are known to exist, without listing.

    Entries have no gaps, so doubling and then bisecting finds the end in about 2 log2(n) requests
    for n unknown entries. An entry deleted by hand may hide those after it; reading the log, or the
    next append, then raises.
    """

    def is_missing(seq: int) -> bool:
        return store.size(entry_key(seq)) is None

    step = 1
    while not is_missing(known + step - 1):
        step *= 2
    return bisect_left(range(known + step - 1), True, lo=known + step // 2, key=is_missing)


def iter_entries(
    store: Store, from_seq: int = 0, to_seq: int | None = None
) -> Iterator[ManifestEntry]:
    """Yield entries ``from_seq`` to ``to_seq`` (exclusive; default: the end) in order.

    Entries before ``from_seq`` are assumed to exist. Raises CorruptOutput as ``read_entry``.
    """
    end = count_entries(store, from_seq) if to_seq is None else to_seq
    return read_entries(store, range(from_seq, end))


def read_entries(store: Store, seqs: Iterable[int]) -> Iterator[ManifestEntry]:
    """Yield the entries with these numbers, fetching several at a time, as ``read_entry`` does."""
    return read_ahead(partial(read_entry, store), seqs, READ_AHEAD)


def iter_rejected(store: Store, to_seq: int | None = None) -> Iterator[Rejected]:
    """Yield the clips that are rejected after all entries, or after the first ``to_seq``.

    Newest first: reading backwards meets a withdrawal before the rejection that it withdraws, so
    only withdrawals are kept in memory.
    """
    end = count_entries(store) if to_seq is None else to_seq
    withdrawn: set[tuple[int, int]] = set()
    for entry in read_entries(store, range(end - 1, -1, -1)):
        for rejection in entry.rejected:
            clip = rejection.ref.row, rejection.ref.segment
            if clip in withdrawn:
                withdrawn.remove(clip)
            else:
                yield rejection
        withdrawn.update((one.ref.row, one.ref.segment) for one in entry.reopened)


def read_entry(store: Store, seq: int) -> ManifestEntry:
    """Return the entry with this number, which is known to exist."""
    key = entry_key(seq)
    uri = store.uri_of(key)
    try:
        entry = ManifestEntry.from_json(uri, store.get(key))
    except NotFound as error:
        raise damaged(uri, "it is missing, though later entries of the manifest exist") from error
    if entry.seq != seq:
        raise damaged(uri, f"it holds entry {entry.seq}")
    return entry
