"""The defects that an audit finds: all are counted, and some of each kind are kept as examples."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tokpipe.formats.checks import damaged

EXAMPLES = 20  # Examples kept of each kind: a damaged output may have one defect per clip

Kind = Literal[
    "job_record", "plan", "entry_missing", "entry_damaged", "checkpoint", "not_planned",
    "clip_twice", "not_rejected", "shard_twice", "unsettled", "object_missing", "shard",
    "side_table", "codes_differ",
]  # fmt: skip
"""What is wrong, as a stable identifier."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One defect."""

    kind: Kind
    where: str  # URI of the object that shows it
    message: str  # What was found there, why it matters and what to do


class Findings:
    """Collects defects."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._examples: dict[str, list[Finding]] = {}

    def __len__(self) -> int:
        return self.counts.total()

    def __iter__(self) -> Iterator[Finding]:
        """Yield the examples, grouped by kind."""
        for examples in self._examples.values():
            yield from examples

    def add(self, kind: Kind, where: str, message: object, *, count: int = 1) -> None:
        """Add a defect; ``message`` may be the error that reported it."""
        self.counts[kind] += count
        examples = self._examples.setdefault(kind, [])
        if len(examples) < EXAMPLES:
            examples.append(Finding(kind, where, str(message)))

    def add_damage(self, kind: Kind, where: str, problem: str, *, count: int = 1) -> None:
        """Add a defect of an object that is not what was written."""
        self.add(kind, where, damaged(where, problem), count=count)
