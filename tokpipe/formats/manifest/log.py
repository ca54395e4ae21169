"""The log of entries: appends one, finds the end, and streams them in order."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice

from tokpipe.errors import CorruptOutput, NotFound
from tokpipe.formats.checks import damaged
from tokpipe.formats.layout import entry_key, number_in
from tokpipe.formats.manifest.entry import ManifestEntry, Tail
from tokpipe.formats.sealed_json import CHECKSUM, dump_lines
from tokpipe.storage.read_ahead import read_ahead
from tokpipe.storage.store import Store
from tokpipe.types import Rejected

READ_AHEAD = 15
"""Entries fetched while one is used: a store takes tens of milliseconds to return one."""


_MOST_CONFIRMED, _NAMED = 100, 5
"""How many missing entries a message counts, each after asking for it, and how many it names."""


def append(store: Store, entry: ManifestEntry) -> ManifestEntry | None:
    """Commit an entry, and return it with its checksum.

    Returns None if another driver's entry already has its number. This driver's view of what is
    committed is then stale.
    """
    sealed = entry.sealed()
    is_ours = store.create(entry_key(entry.seq), dump_lines(sealed))
    return replace(entry, checksum=sealed[CHECKSUM]) if is_ours else None


def count_entries(store: Store, known: int = 0) -> int:
    """Return the number of entries, of which ``known`` are known to exist.

    Unless some are known, lists the manifest once to check that none is missing. A listing may lag
    behind, so doubling and then bisecting finds the end, in about 2 log2(n) requests for n entries
    that are neither known nor listed.

    Raises:
        CorruptOutput: an entry is missing or empty, although a later entry or a checkpoint exists.
    """

    def is_missing(seq: int) -> bool:
        return store.size(entry_key(seq)) is None

    known = known or _count_listed(store)
    step = 1
    while not is_missing(known + step - 1):
        step *= 2
    return bisect_left(range(known + step - 1), True, lo=known + step // 2, key=is_missing)


def _count_listed(store: Store) -> int:
    """Return how many entries a listing shows; raise CorruptOutput if one of them is missing."""
    seen, last = bytearray(), ""  # a byte per entry, for listings in any order
    for found in store.list("manifest/"):
        if (named := number_in(found.key)) is None:
            continue
        number, is_checkpoint = named
        if (num_implied := number + (not is_checkpoint)) > len(seen):
            seen.extend(bytes(num_implied - len(seen)))
            last = found.key
        if not is_checkpoint:
            seen[number] = found.size_bytes > 0
    # Only the object itself is certain: a listing may lag behind.
    unlisted = (seq for seq, is_listed in enumerate(seen) if not is_listed)
    missing = list(
        islice((seq for seq in unlisted if not store.size(entry_key(seq))), _MOST_CONFIRMED)
    )
    if missing:
        more = "at least " if len(missing) == _MOST_CONFIRMED else ""
        raise CorruptOutput(
            f"{store.uri_of(entry_key(missing[0]))} is missing or empty, although "
            f"{store.uri_of(last)} exists: the manifest lacks {more}{len(missing)} of "
            f"{len(seen):,} entries ({', '.join(map(str, missing[:_NAMED]))}"
            f"{', ...' if len(missing) > _NAMED else ''}). Reading the others would silently leave "
            "out clips, and a run would tokenize those again. Restore these objects from a copy or "
            "an older version; if there is none, tokenize the dataset again to a new output "
            f"prefix. If {last} is not part of this output, remove it."
        )
    return len(seen)


def iter_entries(
    store: Store, from_seq: int = 0, to_seq: int | None = None
) -> Iterator[ManifestEntry]:
    """Yield entries ``from_seq`` to ``to_seq`` (exclusive; default: the end) in order.

    Entries before ``from_seq`` are assumed to exist. Raises CorruptOutput as ``read_entry``.
    """
    end = count_entries(store, from_seq) if to_seq is None else to_seq
    return read_entries(store, range(from_seq, end))


def read_entries(store: Store, seqs: Iterable[int]) -> Iterator[ManifestEntry]:
    """Yield the entries with these numbers, fetching several at a time, as ``read_entry`` does.

    Raises CorruptOutput also if two that follow each other are not consecutive parts of one log.
    """
    last: ManifestEntry | None = None
    for entry in read_ahead(partial(read_entry, store), seqs, READ_AHEAD):
        for older, newer in ((last, entry), (entry, last)):  # numbers may ascend or descend
            if older is not None and newer is not None and older.seq + 1 == newer.seq:
                Tail.of(older).check(store.uri_of(entry_key(newer.seq)), newer)
        yield entry
        last = entry


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
