"""Which formats there are: each a module with two functions, imported when it is asked for.

``write(output, folder)`` writes all clips, in the order of the manifest. ``count(folder)`` counts
what is there from the files alone; fewer than no clips are files that contradict each other.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from tokpipe.export.counts import Counts
    from tokpipe.reader import Output

FORMATS: dict[str, str] = {
    "memmap": "video.bin, segment_ids.bin and metadata.json, flat latent frames as 1X's loader "
    "maps them",
    "webdataset": "tars of <clip id>.npy and <clip id>.json",
    "litdata": "chunks and index.json for litdata's StreamingDataset",
    "mds": "shards and index.json for MosaicML's StreamingDataset",
}
"""What each is, by name."""


class Format(Protocol):
    """A module of this package."""

    def write(self, output: Output, folder: Path) -> None: ...
    def count(self, folder: Path) -> Counts: ...


def load(name: str) -> Format:
    """Import one format, and with it what it needs."""
    return cast("Format", importlib.import_module(f"tokpipe.export.{name}"))
