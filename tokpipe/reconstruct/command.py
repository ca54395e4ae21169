"""``tokpipe decode``: writes one clip of an output as a video or an image."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tokpipe.errors import NotFound
from tokpipe.media.quality import Comparison, Frames, Quality
from tokpipe.media.writing import FrameGrid, VideoWriter, write_png
from tokpipe.reader import Clip, Output
from tokpipe.reader.search import near_names, side_rows, source_matcher
from tokpipe.reconstruct.side_by_side import SideBySide
from tokpipe.types import Rejected

GRID_FRAMES = 8
"""Frames in an image."""


@dataclass(frozen=True)
class Decoded:
    """What ``decode_clip`` wrote."""

    clip: Clip
    num_frames: int
    size: tuple[int, int]
    """(height, width) of a reconstructed frame."""
    quality: Quality | None
    """Against the source; None without a comparison."""
    path: Path
    num_matches: int | None = None
    """How many clips match the source that was asked for; this is the first."""

    def lines(self) -> list[str]:
        """Return a summary for people."""
        height, width = self.size
        lines = [
            f"clip {self.clip.clip_id} of {self.clip.source_uri}",
            f"{self.num_frames} frames of {height}x{width} from {self.clip.codes.size:,} codes: "
            f"{self.path}",
        ]
        if (num := self.num_matches or 0) > 1:
            lines[0] += f", the first of {num:,} clips whose source matches"
        if self.quality is not None:
            lines.append(
                f"against the source: PSNR {self.quality.psnr_db:.2f} dB, "
                f"SSIM {self.quality.ssim:.4f} (means over frames)"
            )
        return lines

    def to_json(self) -> str:
        """Return the summary for programs; an infinite PSNR is null."""
        quality = None
        if self.quality is not None:
            psnr = self.quality.psnr_db
            quality = {"psnr_db": psnr if math.isfinite(psnr) else None, "ssim": self.quality.ssim}
        return json.dumps(
            {
                "clip_id": self.clip.clip_id,
                "source_uri": self.clip.source_uri,
                "num_matches": self.num_matches,
                "file": str(self.path),
                "num_frames": self.num_frames,
                "size": list(self.size),
                "num_codes": int(self.clip.codes.size),
                "quality": quality,
            }
        )


def decode_clip(
    output: Output,
    path: Path,
    *,
    clip_id: str | None = None,
    source: str | None = None,
    compare: bool,
    device: str = "auto",
) -> Decoded:
    """Decode a clip's codes to frames and write them to ``path``.

    Args:
        path: ``.mp4`` for the whole clip, ``.png`` for a grid of its frames.
        clip_id: which clip; None for the first of the output.
        source: instead, the first clip whose source matches, as in ``source_matcher``.
        compare: decode the source again, measure PSNR and SSIM against it, and show it: on the
            left of a video, above each row of an image.
        device: ``"auto"``, or a torch device.

    Raises:
        TokpipeError: the clip or decoder does not exist, or weights or source have changed.
    """
    num_matches = None
    if source is not None:
        clip_id, num_matches = _choose(output, source)
    clip = _find(output, clip_id)
    total = sum(chunk.n_frames for chunk in clip.chunks)
    comparison = Comparison() if compare else None
    height = width = 0
    with ExitStack() as stack:
        both = stack.enter_context(SideBySide(output, device))
        grid = FrameGrid(total, GRID_FRAMES, columns=GRID_FRAMES if compare else 4)
        add: Callable[[Frames], None] = grid.add
        if path.suffix == ".mp4":
            add = stack.enter_context(VideoWriter(path, clip.fps)).write
        for block, original in both.blocks(clip, with_source=compare):
            height, width = block.shape[1:3]
            if comparison is not None and original is not None:
                comparison.add(original, block)
                block = np.concatenate([original, block], axis=2 if path.suffix == ".mp4" else 1)
            add(block)
        if path.suffix == ".png":
            write_png(path, grid.picture())
    quality = None if comparison is None else comparison.quality()
    return Decoded(clip, total, (height, width), quality, path, num_matches)


def _choose(output: Output, pattern: str) -> tuple[str, int]:
    """Return the id of the first clip whose source matches, and how many do."""
    matches = source_matcher(pattern)
    first, num_matches = None, 0
    for clip_id, uri in _ids_and_sources(output):
        if matches(uri):
            first = first or clip_id
            num_matches += 1
    if first is None:
        for rejected in output.rejected():
            if matches(rejected.ref.source_uri):
                raise _no_codes(output, rejected)
        names = (uri.rpartition("/")[2] for _, uri in _ids_and_sources(output))
        raise NotFound(
            f"{output.store.uri}: no clip's source matches {pattern!r}."
            f"{_hint(near_names(pattern, names))} List sources with tokpipe ls {output.store.uri}"
        )
    return first, num_matches


def _find(output: Output, clip_id: str | None) -> Clip:
    if clip_id is None:
        if (first := next(output.clips(), None)) is not None:
            return first
        raise NotFound(
            f"{output.store.uri}: has no tokenized clip yet, so there is nothing to decode. Wait "
            "for the job's first shard, or list the rejected clips with tokpipe rejected"
        )
    try:
        return output.clip(clip_id)
    except NotFound as error:
        for rejected in output.rejected():
            if rejected.ref.clip_id == clip_id:
                raise _no_codes(output, rejected) from error
        near = near_names(clip_id, (one for one, _ in _ids_and_sources(output)))
        raise NotFound(
            f"{output.store.uri}: has no clip {clip_id!r}.{_hint(near)} List clips with tokpipe ls "
            f"{output.store.uri}; to name a clip by its source, use --source"
        ) from error


def _no_codes(output: Output, rejected: Rejected) -> NotFound:
    ref = rejected.ref
    return NotFound(
        f"{output.store.uri}: clip {ref.clip_id} of {ref.source_uri} was rejected as "
        f"{rejected.reason}, so it has no codes: {rejected.message}"
    )


def _hint(near: list[str]) -> str:
    return f" Did you mean {' or '.join(near)}?" if near else ""


def _ids_and_sources(output: Output) -> Iterator[tuple[str, str]]:
    for _, row in side_rows(output, ["clip_id", "source_uri"]):
        yield row["clip_id"], row["source_uri"]
