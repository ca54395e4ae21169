"""Makes a report and puts it in its place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tokpipe.errors import ConfigError
from tokpipe.reader import Output
from tokpipe.report.facts import Facts, gather
from tokpipe.report.page import page
from tokpipe.storage.local_files import write_file
from tokpipe.telemetry.human import size_text


@dataclass(frozen=True, slots=True)
class Report:
    """What ``write_report`` wrote."""

    path: Path
    size_bytes: int
    facts: Facts

    def to_json(self) -> str:
        """The figures of the report, on one line."""
        own = {"file": str(self.path), "size_bytes": self.size_bytes}
        return json.dumps(
            {**own, **self.facts.to_dict(), "status": json.loads(self.facts.status.to_json())}
        )

    def lines(self) -> Iterator[str]:
        """What was written, and what could not be shown, for people."""
        yield f"{self.path}: report of {self.facts.status.uri}, {size_text(self.size_bytes)}"
        sample, pairs = self.facts.sample, self.facts.pairs
        yield (
            f"  codes and lengths are those of {sample.num_shards:,} of "
            f"{sample.num_shards_of:,} shards"
        )
        for message in sample.damaged:
            yield f"  left out: {message}"
        if pairs is not None:
            if pairs.problem is not None:
                yield f"  without pictures: {pairs.problem}"
            for pair in pairs.pairs:
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
) -> Report:
    """Write all about an output to one HTML file, which appears under its name once it is whole.

    The manifest is read from end to end, and a sample of shards is fetched and verified. What is
    out of reach, such as sources, weights or torch, is told in the report.

    Args:
        num_shards: how many shards to count codes and lengths of, spread evenly; 0 for all.
        num_pairs: how many clips of these to show beside their sources; 0 for none.
        seed: decides which clips are shown.
        device: to decode on, ``"auto"`` or a torch device.
        now: when the report is made.

    Raises:
        ConfigError: the file's folder does not exist.
        CorruptOutput: the manifest is damaged.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: its folder does not exist, so nothing can be written: make it")
    facts = gather(
        output, num_shards=num_shards, num_pairs=num_pairs, seed=seed, device=device, now=now
    )
    data = page(facts).encode()
    write_file(path, data)
    return Report(path, len(data), facts)
