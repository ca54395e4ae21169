"""Gathers, draws and writes the page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokpipe.errors import ConfigError
from tokpipe.reader import Output
from tokpipe.report.facts import gather
from tokpipe.report.page import page_html
from tokpipe.texts import size_text


@dataclass(frozen=True, slots=True)
class Written:
    """A page that was written."""

    path: Path
    size_bytes: int
    num_pairs: int
    why_no_pairs: str | None

    def to_json(self) -> str:
        return json.dumps(
            {
                "file": str(self.path),
                "size_bytes": self.size_bytes,
                "num_pairs": self.num_pairs,
                "why_no_pairs": self.why_no_pairs,
            }
        )

    def lines(self) -> Iterator[str]:
        shown = f"{self.num_pairs} clips beside their sources"
        yield f"{self.path}: {size_text(self.size_bytes)}, {shown}"
        if self.why_no_pairs is not None:
            yield f"  no more of them: {self.why_no_pairs}"


def write_report(
    output: Output, path: Path, *, num_shards: int = 8, num_pairs: int = 3, seed: int = 0
) -> Written:
    """Write a page about ``output`` to ``path``, as ``gather`` finds it.

    Raises:
        ConfigError: ``path`` is in no folder.
        CorruptOutput: what is read of the output is damaged.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: its folder does not exist, so nothing can be written: make it")
    facts = gather(output, num_shards=num_shards, num_pairs=num_pairs, seed=seed)
    data = page_html(facts).encode()
    path.write_bytes(data)
    return Written(path, len(data), len(facts.pairs), facts.why_no_pairs)
