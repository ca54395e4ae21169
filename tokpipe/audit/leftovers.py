"""Lists an output's objects, and removes those that nothing names.

Killed workers and drivers leave such objects, and after the job they only take space. Before, a
shard may also belong to a driver, or to an entry that was lost.
"""

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from tokpipe.config.job import LISTED_WITHIN_S
from tokpipe.errors import ConfigError
from tokpipe.formats import job_record
from tokpipe.formats.layout import MANIFEST_KEY
from tokpipe.formats.manifest import CommittedRows, ManifestState, count_entries, iter_entries
from tokpipe.plan.stored import PlanPart, StoredPlan
from tokpipe.storage import Store, StoredObject


class Listing:
    """The objects below an output's prefix, from one listing."""

    def __init__(self, store: Store) -> None:
        self.entries: list[int] = []  # Numbers of the manifest entries, ascending
        self.checkpoints: set[int] = set()  # The number of entries that each of them sums up
        self.data: dict[str, StoredObject] = {}  # Shards and side tables, by key
        self.temporary: list[StoredObject] = []  # Plans and probes, which may be leftovers
        for found in store.list(""):
            folder = found.key.partition("/")[0]
            if folder in ("shards", "clips"):
                self.data[found.key] = found
            elif folder in ("plan", "probe"):
                self.temporary.append(found)
            elif match := MANIFEST_KEY.fullmatch(found.key):
                if match[2]:
                    self.checkpoints.add(int(match[1]))
                else:
                    self.entries.append(int(match[1]))
        self.entries.sort()

    def unlisted(self, state: ManifestState, plan: Iterable[PlanPart]) -> list[StoredObject]:
        """Return the objects that neither a manifest nor the plan of its output names."""
        listed = {part.key for part in plan}
        for name in ("shard", "side_table"):
            listed.update(state.shards.column(name).to_pylist())
        return [one for one in (*self.data.values(), *self.temporary) if one.key not in listed]


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Totals over unlisted objects."""

    num_objects: int = 0
    size_bytes: int = 0
    num_kept: int = 0  # Others, shards and side tables, kept while plan rows are not settled

    @classmethod
    def of(cls, objects: Collection[StoredObject], kept: int = 0) -> "Leftovers":
        return cls(len(objects), sum(found.size_bytes for found in objects), kept)


def clean(
    store: Store,
    *,
    older_than_s: float = 2 * 24 * 3600.0,
    partial: bool = False,
    dry_run: bool = False,
) -> Leftovers:
    """Remove unlisted objects older than ``older_than_s``; return what was, or would be, removed.

    Keeps shards and side tables while plan rows are not settled, unless ``partial`` says that the
    job will not be finished. Reads the whole manifest after listing the objects, so it keeps what
    is committed meanwhile.

    Raises:
        ConfigError: an age at which a driver may still be about to list an object.
        CorruptOutput: the manifest is damaged, so what it lists is unknown. Nothing is removed.
    """
    if older_than_s < LISTED_WITHIN_S:  # a running driver lists a shard after it was written
        raise ConfigError(
            f"--older-than is {older_than_s:.0f} seconds, but objects younger than an hour may "
            "belong to a driver about to list them. That would lose clips: use an hour or more"
        )
    now_s = time.time()
    listing = Listing(store)
    record = job_record.read(store)
    committed = CommittedRows(record.num_rows)
    state = ManifestState(committed)
    # A second listing may show less than the first, and what it lacks would look unlisted.
    end = max(count_entries(store), listing.entries[-1] + 1 if listing.entries else 0)
    for entry in iter_entries(store, to_seq=end):
        state.count(entry)
        for withdrawn in entry.reopened:
            committed.reopen(withdrawn.ref)
        for ref in entry.refs():
            committed.add(ref)
    every = listing.unlisted(state, StoredPlan.of(record, state.growth).parts)
    old = [found for found in every if now_s - found.modified_s > older_than_s]
    keeps = committed.num_unsettled and not partial
    removed = [found for found in old if not (keeps and found.key in listing.data)]
    if not dry_run:
        for found in removed:
            store.delete(found.key)
    return Leftovers.of(removed, len(old) - len(removed))
