"""What counts over a sample of shards say of the sample."""

from __future__ import annotations

from collections.abc import Iterator

from tokpipe.report.markup import Markup, el
from tokpipe.report.parts import counted, notice
from tokpipe.report.sample import Sample


def sample_text(sample: Sample) -> str:
    """Which shards were counted, in words."""
    of = counted(sample.num_shards_of, "shard")
    if sample.is_all:
        return f"the whole output ({of})"
    return f"a sample of {sample.num_shards:,} of {of}, evenly spread"


def damaged(sample: Sample) -> Iterator[Markup]:
    """Which shards could not be counted, and why."""
    if sample.damaged:
        count = len(sample.damaged)
        yield notice(
            f"{counted(count, 'shard')} of the sample could not be read and "
            f"{'is' if count == 1 else 'are'} left out. Run tokpipe audit."
        )
        yield el("ul", *(el("li", message) for message in sample.damaged))
