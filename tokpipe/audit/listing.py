"""Everything below an output's prefix, sorted by what it is."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from tokpipe.storage.store import Store, StoredObject

_ENTRY = re.compile(r"manifest/(\d{8,})\.json")
_CHECKPOINT = re.compile(r"manifest/(\d{8,})\.checkpoint\.json")


@dataclass(slots=True)
class Listing:
    """What one listing of an output has shown."""

    num_objects: int = 0
    entries: list[int] = field(default_factory=list)
    """Numbers of manifest entries, in order."""
    checkpoints: set[int] = field(default_factory=set)
    """Numbers that a checkpoint sums up to."""
    data: dict[str, StoredObject] = field(default_factory=dict)
    """Shards and side tables, by key."""
    passing: list[StoredObject] = field(default_factory=list)
    """Plans and probes, which may be leftovers."""


def list_output(store: Store) -> Listing:
    """List all objects below an output's prefix."""
    listing = Listing()
    for found in store.list(""):
        listing.num_objects += 1
        folder = found.key.partition("/")[0]
        if folder in ("shards", "clips"):
            listing.data[found.key] = found
        elif folder in ("plan", "probe"):
            listing.passing.append(found)
        elif match := _ENTRY.fullmatch(found.key):
            listing.entries.append(int(match[1]))
        elif match := _CHECKPOINT.fullmatch(found.key):
            listing.checkpoints.add(int(match[1]))
    listing.entries.sort()
    return listing
