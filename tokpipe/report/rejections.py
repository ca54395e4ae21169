"""Examples of rejected clips."""

from collections import defaultdict, deque

from tokpipe.formats.manifest import ManifestEntry
from tokpipe.types import Rejected

NUM_EXAMPLES = 3


class RejectionExamples:
    """Keeps the newest rejections of each reason while manifest entries stream by."""

    def __init__(self) -> None:
        self._newest: defaultdict[str, deque[Rejected]] = defaultdict(
            lambda: deque(maxlen=NUM_EXAMPLES)
        )

    def add(self, entry: ManifestEntry) -> None:
        for withdrawn in entry.reopened:
            kept = self._newest[withdrawn.reason]
            for example in [one for one in kept if one.ref == withdrawn.ref]:
                kept.remove(example)
        for rejected in entry.rejected:
            self._newest[rejected.reason].appendleft(rejected)

    def of(self, reason: str) -> list[Rejected]:
        """The examples of one reason, newest first; none if its entries were not read."""
        return list(self._newest[reason])
