"""Writes a report as one HTML file."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tokpipe.reader import Output
from tokpipe.report.facts import Facts
from tokpipe.report.history import History, read_groups
from tokpipe.report.page import page
from tokpipe.report.sample import make_pairs, take_sample
from tokpipe.storage.local_files import write_file
from tokpipe.telemetry.human import size_text
from tokpipe.verbs.status import status_of


@dataclass(frozen=True, slots=True)
class WrittenReport:
    """A report that ``write_report`` wrote."""

    path: Path
    size_bytes: int
    facts: Facts
    incomplete: str

    def to_dict(self) -> dict[str, Any]:
        """Return the figures of the report."""
        own = {"file": str(self.path), "size_bytes": self.size_bytes}
        return {**own, **self.facts.to_dict(), "status": self.facts.status.to_dict()}

    def lines(self) -> Iterator[str]:
        """Yield what was written, and what the report could not show."""
        sample, pairs = self.facts.sample, self.facts.pairs
        yield f"{self.path}: report on {self.facts.status.uri}, {size_text(self.size_bytes)}"
        shards = f"{sample.num_shards:,} of {sample.num_shards_of:,} shards"
        yield f"  codes and lengths were counted in {shards}"
        if self.incomplete:
            yield f"  {self.incomplete}"
        for message in sample.damaged:
            yield f"  left out: {message}"
        if pairs is not None and pairs.problem is not None:
            yield f"  without pictures: {pairs.problem}"
        for pair in pairs.pairs if pairs else ():
            if pair.problem is not None:
                yield f"  without the source of clip {pair.clip.clip_id}: {pair.problem}"


def write_report(
    output: Output,
    path: Path,
    *,
    num_shards: int = 8,
    num_pairs: int = 3,
    seed: int = 0,
    device: str = "auto",
    now: datetime | None = None,
) -> WrittenReport:
    """Write a report on an output to one HTML file. The file appears when it is complete.

    Reads the whole manifest (a sample of a long one), and fetches and verifies a sample of shards.
    If sources, weights or torch are missing or not trusted, the report says so. Memory grows with
    the number of shards, as that of ``output`` does, and with nothing else.

    Args:
        num_shards: number of shards in which to count codes and lengths; 0 for all.
        num_pairs: number of their clips to show, which ``seed`` selects; 0 for none.
    """
    now = now or datetime.now(UTC)
    sample = take_sample(output, num_shards=num_shards, num_clips=num_pairs, seed=seed)
    facts = Facts(
        made_at=now.isoformat(timespec="seconds"),
        record=output.record,
        status=status_of(output.store, output.record, output.state, now=now),
        num_entries=output.state.next_seq,
        history=History(read_groups(output)),
        sample=sample,
        pairs=make_pairs(output, sample.clips, device) if num_pairs else None,
    )
    data = page(facts).encode(errors="backslashreplace")
    write_file(path, data)
    return WrittenReport(path, len(data), facts, output.incomplete)
