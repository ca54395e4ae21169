"""From the stored plan to work items, without what is committed."""

from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import islice

from tokpipe.formats.manifest import CommittedRows
from tokpipe.plan import PlanReader
from tokpipe.runtime.dispatch.protocol import Planned
from tokpipe.types import WorkItem


class Feed:
    """Hands out the undone part of a plan in plan order, once.

    A row of which some segments are committed comes as its missing segments.
    """

    def __init__(
        self, plan: PlanReader, committed: CommittedRows, fixed: Collection[int] = ()
    ) -> None:
        """``fixed``: rows whose source was unusable, so that it may be another one by now."""
        self._fixed = fixed
        # Copied, because the committer's thread changes it. What this driver commits later was
        # handed out before, so it cannot come again.
        self._partial = {
            row: (part.num_segments, frozenset(part.done))
            for row, part in committed.partial.items()
        }
        batches = plan.iter_undone(committed.done)
        self._left = (left for batch in batches for item in batch for left in self._missing(item))

    def fetch(self, num_items: int) -> Planned:
        """Return ``num_items`` items, or all that are left."""
        items = tuple(islice(self._left, num_items))
        return Planned(items, exhausted=len(items) < num_items)

    def _missing(self, item: WorkItem) -> Iterator[WorkItem]:
        if item.row not in self._partial:
            yield replace(item, follows=True) if item.row in self._fixed else item
            return
        total, done = self._partial[item.row]
        for segment in range(total):
            if segment not in done:
                yield replace(item, segment=segment, num_segments=total)
