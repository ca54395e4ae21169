"""Writes an export, compares what was written with the manifest, then gives it its name."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from tokpipe.errors import ConfigError, CorruptOutput
from tokpipe.telemetry.human import counted, size_text

if TYPE_CHECKING:
    from tokpipe.reader import Output
    from tokpipe.reader.compose import Template

FORMATS: dict[str, tuple[str, str]] = {
    "memmap": ("flat", "video.bin, segment_ids.bin, metadata.json: latent frames for 1X's loader"),
    "webdataset": ("packed", "tars of <clip id>.npy and <clip id>.json"),
    "litdata": ("packed", "chunks and index.json for litdata's StreamingDataset"),
    "mds": ("packed", "shards and index.json for MosaicML's StreamingDataset"),
    "megatron": ("flat", "tokens.bin and tokens.idx, for Megatron-LM's --data-path FOLDER/tokens"),
    "huggingface": ("huggingface", "data/*.parquet and a card, for datasets.load_dataset(FOLDER)"),
}
"""Each format: the module with its ``write_<name>``, and what that writes."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    folder: str
    format: str
    num_clips: int
    num_codes: int
    num_tokens: int  # 0 if codes are stored
    num_files: int
    size_bytes: int
    incomplete: str  # How much of the output was missing; empty if it was complete

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> Iterator[str]:
        tokens = f"{self.num_tokens:,} tokens, " if self.num_tokens else ""
        yield (
            f"{self.folder}: {counted(self.num_clips, 'clip')}, {self.num_codes:,} codes, {tokens}"
            f"{size_text(self.size_bytes)} in {counted(self.num_files, 'file')} ({self.format})"
        )
        if self.incomplete:
            yield f"  {self.incomplete}"


def export_output(
    output: Output,
    to: str,
    folder: Path,
    *,
    template: Template | None = None,
    num_workers: int = 1,
    allow_partial: bool = False,
) -> Exported:
    """Write ``output`` to ``folder``, which must not exist, in one of ``FORMATS``.

    The export is called ``<folder>.partial`` until every clip and code that the manifest lists is
    written. Without ``allow_partial``, an unfinished output raises IncompleteOutput.

    With ``template``, each clip is stored as its tokens. The fields are columns of the side table.
    ``num_workers`` processes read and compose the clips; their number changes no byte.
    """
    if not allow_partial:
        output.check_complete("the export would miss clips", "--allow-partial")
    if to not in FORMATS:
        raise ConfigError(f"export: unknown format {to!r}. Choose from: {', '.join(FORMATS)}")
    if folder.exists():
        raise ConfigError(f"export: {folder} exists: choose another folder, or remove it")
    from tokpipe.export.samples import Source
    from tokpipe.reader.sequences import default_template

    if to == "megatron":
        template = template or default_template(output.tokenizer)
    source = Source(output, template, tokens_only=to == "megatron", num_workers=num_workers)
    partial = folder.with_name(f"{folder.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)  # left by an export that was killed
    partial.mkdir(parents=True)
    write = resolve_name(f"tokpipe.export.{FORMATS[to][0]}:write_{to}")
    write(source, partial)
    num_clips, num_codes = source.num_clips, source.num_codes
    if (num_clips, num_codes) != (output.num_clips, output.num_codes):
        found = f"export: {partial} holds {num_clips:,} clips and {num_codes:,} codes"
        lists = f"{output.uri} lists {output.num_clips:,} and {output.num_codes:,}"
        raise CorruptOutput(f"{found}, but the manifest of {lists}. Run tokpipe audit")
    if template:
        source.describe(partial, num_tokens=source.num_tokens)
    partial.rename(folder)
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    counts = num_clips, num_codes, source.num_tokens, len(sizes), sum(sizes)
    return Exported(str(folder), to, *counts, output.incomplete)
