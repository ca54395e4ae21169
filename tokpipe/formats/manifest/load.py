"""Loads the state of a manifest: the newest intact checkpoint, then the entries after it."""

from __future__ import annotations

import logging

from tokpipe.errors import CorruptOutput, NotFound
from tokpipe.formats.manifest.checkpoint import CHECKPOINT_INTERVAL, read_checkpoint
from tokpipe.formats.manifest.committed import CommittedRows
from tokpipe.formats.manifest.log import count_entries, iter_entries
from tokpipe.formats.manifest.state import ManifestState
from tokpipe.storage.store import Store

_log = logging.getLogger(__name__)


def load_state(
    store: Store, num_rows: int, *, interval: int = CHECKPOINT_INTERVAL
) -> ManifestState:
    """Return the state of an output's manifest, over a plan of ``num_rows`` rows.

    With checkpoints this takes a few dozen requests for a manifest of any length. It lists no
    keys: a listing is slow on large outputs, and lags behind on some stores.

    Raises:
        CorruptOutput: an entry is damaged or missing, or contradicts others or the plan.
    """
    num_entries = count_entries(store)
    state = _newest_checkpoint(store, num_rows, num_entries, interval)
    for entry in iter_entries(store, state.next_seq, num_entries):
        state.apply(entry)
    return state


def _newest_checkpoint(
    store: Store, num_rows: int, num_entries: int, interval: int
) -> ManifestState:
    """Try checkpoints, newest first.

    If none exists this costs one request per ``interval`` entries, all of which must then be
    read anyway.
    """
    for seq in range(num_entries - num_entries % interval, 0, -interval):
        try:
            return read_checkpoint(store, seq, num_rows)
        except NotFound:
            continue
        except CorruptOutput as error:
            _log.warning("skipping a damaged checkpoint: %s", error)
    return ManifestState(CommittedRows(num_rows))
