"""The manifest: an append-only log of finished shards and rejected clips.

Unlisted means unfinished. ``entry`` is what one object of the log holds, ``log`` puts entries in
line and streams them, ``committed`` counts off the plan, ``state`` sums up the log,
``checkpoint`` saves that sum so that a resume reads few objects.
"""

from tokpipe.formats.manifest.checkpoint import CHECKPOINT_INTERVAL, write_checkpoint
from tokpipe.formats.manifest.committed import CommittedRows, PartialRow
from tokpipe.formats.manifest.entry import Claim, ManifestEntry, Reopened
from tokpipe.formats.manifest.load import load_state
from tokpipe.formats.manifest.log import (
    append,
    count_entries,
    iter_entries,
    iter_rejected,
    read_entries,
)
from tokpipe.formats.manifest.state import ManifestState, Totals

__all__ = [
    "CHECKPOINT_INTERVAL",
    "Claim",
    "CommittedRows",
    "ManifestEntry",
    "ManifestState",
    "PartialRow",
    "Reopened",
    "Totals",
    "append",
    "count_entries",
    "iter_entries",
    "iter_rejected",
    "load_state",
    "read_entries",
    "write_checkpoint",
]
