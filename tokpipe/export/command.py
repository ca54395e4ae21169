"""Writes an export whole or not at all, and checks it against the manifest before it counts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tokpipe.errors import ConfigError, CorruptOutput
from tokpipe.export.catalogue import FORMATS, load
from tokpipe.export.counts import Counts
from tokpipe.telemetry.human import size_text

if TYPE_CHECKING:  # so that a list of formats costs no pyarrow
    from tokpipe.reader import Output


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, counted again from the files."""

    folder: str
    format: str
    num_clips: int
    num_codes: int
    num_files: int
    size_bytes: int

    def to_json(self) -> str:
        """All of it, on one line."""
        return json.dumps(asdict(self))

    def lines(self) -> Iterator[str]:
        """The same for people."""
        yield (
            f"{self.folder}: {self.num_clips:,} clips, {self.num_codes:,} codes, "
            f"{size_text(self.size_bytes)} in {self.num_files:,} files ({self.format})"
        )


def export_output(output: Output, name: str, folder: Path) -> Exported:
    """Write ``output`` to ``folder``, which must not exist, in one of ``FORMATS``.

    The folder appears under its name when everything was written, counted and found to be what
    the manifest lists; before, it is called ``<folder>.partial``.

    Raises:
        ConfigError: there is such a folder already, no such format, or the format cannot hold the
            output, with the reason.
        CorruptOutput: a shard is damaged, or the counts differ.
    """
    if name not in FORMATS:
        raise ConfigError(f"export: there is no format {name!r}. There are: {', '.join(FORMATS)}")
    if folder.exists():
        raise ConfigError(
            f"export: {folder} exists. What is in it would be mixed with the export or lost: name "
            "another folder, or remove it"
        )
    partial = folder.with_name(f"{folder.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)  # of an export that was killed
    partial.mkdir(parents=True)
    format = load(name)
    format.write(output, partial)
    found = format.count(partial)
    wanted = Counts(output.num_clips, output.num_codes)
    if found != wanted:
        raise CorruptOutput(
            f"export: {partial} holds {found.num_clips:,} clips and {found.num_codes:,} codes, and "
            f"the manifest of {output.store.uri} lists {wanted.num_clips:,} and "
            f"{wanted.num_codes:,}. A training run would miss some or see others: look at "
            "tokpipe audit, and at the disk"
        )
    partial.rename(folder)
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return Exported(str(folder), name, found.num_clips, found.num_codes, len(sizes), sum(sizes))
