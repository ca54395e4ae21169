"""The manifest: an append-only log of finished shards and rejected clips.

A shard that is not listed is unfinished. ``entry`` is one object of the log, ``log`` appends and
streams entries, ``committed`` tracks which plan rows are settled, ``state`` sums up the log, and
``checkpoint`` saves and loads that sum, so that a resume reads few objects.
"""

from tokpipe.formats.manifest.checkpoint import (
    CHECKPOINT_INTERVAL,
    checkpoint_spacing,
    load_state,
    write_checkpoint,
)
from tokpipe.formats.manifest.committed import CommittedRows, PartialRow
from tokpipe.formats.manifest.entry import Claim, Growth, ManifestEntry, Reopened
from tokpipe.formats.manifest.log import (
    append,
    count_entries,
    iter_entries,
    iter_rejected,
    read_entries,
)
from tokpipe.formats.manifest.state import ManifestState, Totals

__all__ = [
    "CHECKPOINT_INTERVAL", "Claim", "CommittedRows", "Growth", "ManifestEntry", "ManifestState",
    "PartialRow", "Reopened", "Totals", "append", "checkpoint_spacing", "count_entries",
    "iter_entries", "iter_rejected", "load_state", "read_entries", "write_checkpoint",
]  # fmt: skip
