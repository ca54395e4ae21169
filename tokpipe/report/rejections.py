"""Examples of rejected clips."""

from collections import deque

from tokpipe.formats.manifest import ManifestEntry
from tokpipe.types import Rejected

NUM_EXAMPLES = 3
MAX_REASONS = 100
"""Reasons with examples. Jobs have a few dozen; a forged manifest may have any number."""


class RejectionExamples:
    """Keeps the newest rejections of each reason while manifest entries stream by."""

    def __init__(self) -> None:
        self._newest: dict[str, deque[Rejected]] = {}

    def add(self, entry: ManifestEntry) -> None:
        for withdrawn in entry.reopened:
            kept = self._newest.get(withdrawn.reason, deque())
            for example in [one for one in kept if one.ref == withdrawn.ref]:
                kept.remove(example)
        for rejected in entry.rejected:
            if rejected.reason in self._newest or len(self._newest) < MAX_REASONS:
                kept = self._newest.setdefault(rejected.reason, deque(maxlen=NUM_EXAMPLES))
                kept.appendleft(rejected)

    def of(self, reason: str) -> list[Rejected]:
        """The examples of one reason, newest first; none if its entries were not read."""
        return list(self._newest.get(reason, ()))
