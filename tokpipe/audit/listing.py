"""Everything below an output's prefix, sorted by what it is."""

import re
from dataclasses import dataclass, field

from tokpipe.storage.store import Store, StoredObject

_MANIFEST = re.compile(r"manifest/(\d{8,})(\.checkpoint)?\.json")


@dataclass(slots=True)
class Listing:
    """The objects of an output, from one listing."""

    num_objects: int = 0
    entries: list[int] = field(default_factory=list)
    """Numbers of the manifest entries, ascending."""
    checkpoints: set[int] = field(default_factory=set)
    """For each checkpoint, the number of entries that it sums up."""
    data: dict[str, StoredObject] = field(default_factory=dict)
    """Shards and side tables, by key."""
    temporary: list[StoredObject] = field(default_factory=list)
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
            listing.temporary.append(found)
        elif match := _MANIFEST.fullmatch(found.key):
            if match[2]:
                listing.checkpoints.add(int(match[1]))
            else:
                listing.entries.append(int(match[1]))
    listing.entries.sort()
    return listing
