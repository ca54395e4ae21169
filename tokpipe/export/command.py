"""Writes an export, compares what was written with the manifest, then gives it its name."""

from __future__ import annotations

import importlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokpipe.errors import ConfigError, CorruptOutput
from tokpipe.telemetry.human import counted, size_text

if TYPE_CHECKING:  # importing FORMATS must not import pyarrow
    from tokpipe.reader import Clip, Output

FORMATS: dict[str, str] = {
    "memmap": "video.bin, segment_ids.bin and metadata.json: flat latent frames, as 1X's loader "
    "maps them",
    "webdataset": "tars of <clip id>.npy and <clip id>.json",
    "litdata": "chunks and index.json for litdata's StreamingDataset",
    "mds": "shards and index.json for MosaicML's StreamingDataset",
}
"""Each format is a module of this package, by name, with what its ``write`` writes."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    folder: str
    format: str
    num_clips: int
    num_codes: int
    num_files: int
    size_bytes: int
    incomplete: str  # How much of the output was missing; empty if it was complete

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> Iterator[str]:
        yield (
            f"{self.folder}: {counted(self.num_clips, 'clip')}, {self.num_codes:,} codes, "
            f"{size_text(self.size_bytes)} in {counted(self.num_files, 'file')} ({self.format})"
        )
        if self.incomplete:
            yield f"  {self.incomplete}"


def export_output(
    output: Output, name: str, folder: Path, *, allow_partial: bool = False
) -> Exported:
    """Write ``output`` to ``folder``, which must not exist, in one of ``FORMATS``.

    The export is called ``<folder>.partial`` until every clip and code that the manifest lists is
    written. Without ``allow_partial``, an output whose job has not finished raises
    IncompleteOutput.
    """
    if not allow_partial:
        output.check_complete("the export would miss clips", "--allow-partial")
    if name not in FORMATS:
        raise ConfigError(f"export: unknown format {name!r}. Choose from: {', '.join(FORMATS)}")
    if folder.exists():
        raise ConfigError(
            f"export: {folder} exists. Its content would be mixed with the export or lost. Choose "
            "another folder, or remove it"
        )
    partial = folder.with_name(f"{folder.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)  # left by an export that was killed
    partial.mkdir(parents=True)
    num_clips = num_codes = 0

    def counting() -> Iterator[Clip]:
        nonlocal num_clips, num_codes
        for clip in output.clips():
            if not re.fullmatch("[0-9a-f]{32}", clip.clip_id):
                raise CorruptOutput(
                    f"export: {output.store.uri} has a clip with the id {clip.clip_id!r}, not 32 "
                    "hex digits. Files and samples are named by ids, so this could name any file. "
                    "Do not trust this output: tokenize its sources yourself"
                )
            yield clip
            num_clips, num_codes = num_clips + 1, num_codes + clip.codes.size

    importlib.import_module(f"tokpipe.export.{name}").write(counting(), output, partial)
    if (num_clips, num_codes) != (output.num_clips, output.num_codes):
        raise CorruptOutput(
            f"export: {partial} holds {num_clips:,} clips and {num_codes:,} codes, but the "
            f"manifest of {output.store.uri} lists {output.num_clips:,} and {output.num_codes:,}. "
            "Training on it would miss clips or read wrong ones. Run tokpipe audit"
        )
    partial.rename(folder)
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    stored = len(sizes), sum(sizes)
    return Exported(str(folder), name, num_clips, num_codes, *stored, output.incomplete)
