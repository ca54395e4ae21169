"""The log of entries: appends one, finds the end, and streams them in order."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial

from tokpipe.errors import NotFound
from tokpipe.formats.checks import damaged, sha256
from tokpipe.formats.layout import MANIFEST_KEY, entry_key
from tokpipe.formats.manifest.entry import ManifestEntry, Tail
from tokpipe.formats.sealed_json import read_sealed
from tokpipe.storage.read_ahead import read_ahead
from tokpipe.storage.store import Store
from tokpipe.types import Rejected

READ_AHEAD = 15  # Entries fetched while one is used: a store takes tens of milliseconds for one


def append(store: Store, entry: ManifestEntry) -> ManifestEntry | None:
    """Commit an entry and return it with its hash, or None if another driver's has its number."""
    data = entry.to_json()
    is_ours = store.create(entry_key(entry.seq), data)
    return replace(entry, sha256=sha256(data)) if is_ours else None


def count_entries(store: Store, known: int = 0) -> int:
    """Return the number of entries, of which ``known`` are known to exist.

    Unless some are known, lists the manifest once to check that none is missing. A listing may lag
    behind, so doubling and then bisecting finds the end, in about 2 log2(n) requests for n entries
    that are neither known nor listed.

    CorruptOutput if one is missing or empty, although a later one, a checkpoint or shards exist.
    """

    def is_missing(seq: int) -> bool:
        return store.size(entry_key(seq)) is None

    known = known or _count_listed(store)
    step = 1
    while not is_missing(known + step - 1):
        step *= 2
    end = bisect_left(range(known + step - 1), True, lo=known + step // 2, key=is_missing)
    if not end and any(store.list("shards/")) and is_missing(0):  # again: a driver may just start
        raise damaged(
            store.uri_of(entry_key(0)),
            "it is missing, although there are shards, and none is written before this entry",
            "Readers would find no clip, and a run would tokenize all of them again",
        )
    return end


def _count_listed(store: Store) -> int:
    """Return how many entries a listing shows; raise CorruptOutput if one of them is missing."""
    seen, last = bytearray(), ""  # a byte per entry, for listings in any order
    for found in store.list("manifest/"):
        if match := MANIFEST_KEY.fullmatch(found.key):
            number, is_entry = int(match[1]), not match[2]
            if number + is_entry > len(seen):  # a checkpoint sums up those before its number
                seen.extend(bytes(number + is_entry - len(seen)))
                last = found.key
            if is_entry:
                seen[number] = found.size_bytes > 0
    # Only the object itself is certain: a listing may lag behind.
    unlisted = (seq for seq, is_listed in enumerate(seen) if not is_listed)
    lost = (seq for seq in unlisted if not store.size(entry_key(seq)))
    if (seq := next(lost, None)) is not None:
        raise damaged(
            store.uri_of(entry_key(seq)),
            f"it is missing or empty, although {last} exists",
            "Readers would skip its clips, and a run would tokenize them again. Remove "
            f"{last} if it is not part of this output, or count what is missing by tokpipe audit",
        )
    return len(seen)


def iter_entries(
    store: Store, from_seq: int = 0, to_seq: int | None = None, *, after: Tail | None = None
) -> Iterator[ManifestEntry]:
    """Yield entries ``from_seq`` to ``to_seq`` (exclusive; default: the end) in order.

    Those before ``from_seq`` are assumed to exist, and to end in ``after``. See ``read_entries``.
    """
    end = count_entries(store, from_seq) if to_seq is None else to_seq
    return read_entries(store, range(from_seq, end), after)


def read_entries(
    store: Store, seqs: Iterable[int], after: Tail | None = None
) -> Iterator[ManifestEntry]:
    """Yield the entries with these numbers, fetching several at a time, as ``read_entry`` does.

    Raises CorruptOutput also if one does not continue the one before it, if both are read in turn.
    """
    last: ManifestEntry | None = None
    for entry in read_ahead(partial(read_entry, store), seqs, READ_AHEAD):
        if last is not None and last.seq == entry.seq + 1:  # backwards
            entry.tail.check(store, last)
        elif after is not None and (last is None or last.seq + 1 == entry.seq):
            after.check(store, entry)
        yield entry
        last, after = entry, entry.tail


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
        data = read_sealed(store, key)
    except NotFound as error:
        raise damaged(uri, "it is missing, though later entries of the manifest exist") from error
    entry = ManifestEntry.from_json(uri, data)
    if entry.seq != seq:
        raise damaged(uri, f"it holds entry {entry.seq}")
    return replace(entry, sha256=entry.redacted or sha256(data))
