"""Rejected clips by reason, with a few of each to look at."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from tokpipe.formats.manifest import ManifestEntry
from tokpipe.types import Rejected

NUM_EXAMPLES = 3
MAX_REASONS = 100
"""Examples are kept of so many reasons. There are a few dozen."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason."""

    reason: str
    count: int
    examples: list[Rejected]
    """The newest."""


class Refusals:
    """Gathers examples while the manifest streams by."""

    def __init__(self) -> None:
        self._examples: dict[str, deque[Rejected]] = {}

    def add(self, entry: ManifestEntry) -> None:
        """Take in the next entry."""
        for withdrawn in entry.reopened:
            kept = self._examples.get(withdrawn.reason, deque())
            for example in [one for one in kept if one.ref == withdrawn.ref]:
                kept.remove(example)
        for rejected in entry.rejected:
            if rejected.reason in self._examples or len(self._examples) < MAX_REASONS:
                kept = self._examples.setdefault(rejected.reason, deque(maxlen=NUM_EXAMPLES))
                kept.append(rejected)

    def by_reason(self, counts: Mapping[str, int]) -> list[Refusal]:
        """Put the manifest's own counts and the examples together, the most frequent first."""
        most_first = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
        return [
            Refusal(reason, count, list(self._examples.get(reason, ()))[::-1])
            for reason, count in most_first
        ]
