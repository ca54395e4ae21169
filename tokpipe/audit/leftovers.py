"""Objects that nothing names: left by killed workers and drivers. Harmless, but they take room."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from tokpipe.audit.listing import Listing, list_output
from tokpipe.errors import ConfigError
from tokpipe.formats import job_record
from tokpipe.formats.manifest import count_entries, iter_entries
from tokpipe.plan import StoredPlan
from tokpipe.storage.store import Store, StoredObject

OLDER_THAN_S = 2 * 24 * 3600.0
"""Default age of what ``clean`` removes."""

YOUNGEST_S = 3600.0
"""Younger objects may be those of a driver at work, which lists a shard after it was put."""


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Unlisted objects, summed up."""

    num_objects: int = 0
    size_bytes: int = 0
    oldest_s: float = 0.0
    """Age of the oldest, in seconds."""

    @classmethod
    def of(cls, objects: Collection[StoredObject], now_s: float) -> Leftovers:
        oldest_s = max((now_s - found.modified_s for found in objects), default=0.0)
        return cls(len(objects), sum(found.size_bytes for found in objects), max(oldest_s, 0.0))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def unlisted(
    listing: Listing, listed: Collection[str], plan_parts: Collection[str]
) -> list[StoredObject]:
    """Return the objects that neither the manifest nor the job's record names."""
    return [
        *(found for key, found in listing.data.items() if key not in listed),
        *(found for found in listing.passing if found.key not in plan_parts),
    ]


def clean(store: Store, *, older_than_s: float = OLDER_THAN_S, dry_run: bool = False) -> Leftovers:
    """Remove unlisted objects of some age; returns what was removed, or would be.

    The manifest is read whole, and after the listing: what is committed meanwhile is kept.

    Raises:
        ConfigError: an age at which a driver may still be about to list an object.
        CorruptOutput: the manifest is damaged, so what it lists is not known. Nothing is removed.
    """
    if older_than_s < YOUNGEST_S:
        raise ConfigError(
            f"--older-than is {older_than_s:.0f} seconds, and objects younger than an hour may "
            "belong to a driver that is about to list them. Removed, they would be lost from the "
            "dataset: give an hour or more"
        )
    now_s = time.time()
    listing = list_output(store)
    record = job_record.read(store)
    listed: set[str] = set()
    # To the last entry of the listing, or later: the search for the end may stop at a gap, and
    # what stands behind it would look unlisted.
    end = max(count_entries(store), listing.entries[-1] + 1 if listing.entries else 0)
    for entry in iter_entries(store, to_seq=end):
        for receipt in entry.shards:
            listed.update((receipt.shard, receipt.side_table))
    plan_parts = {part.key for part in StoredPlan.from_json(record.plan).parts}
    old = [
        found
        for found in unlisted(listing, listed, plan_parts)
        if now_s - found.modified_s > older_than_s
    ]
    if not dry_run:
        for found in old:
            store.delete(found.key)
    return Leftovers.of(old, now_s)
