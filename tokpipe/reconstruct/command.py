"""``tokpipe decode``: writes one clip of an output as a video or an image."""

import json
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tokpipe.errors import ConfigError, NotFound
from tokpipe.media.quality import Comparison, Frames, Quality
from tokpipe.media.writing import FrameGrid, VideoWriter, write_png
from tokpipe.reader import Clip, Output, open_output
from tokpipe.reconstruct.side_by_side import SideBySide

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

    def lines(self) -> list[str]:
        """Return a summary for people."""
        height, width = self.size
        lines = [
            f"clip {self.clip.clip_id} of {self.clip.source_uri}",
            f"{self.num_frames} frames of {height}x{width} from {self.clip.codes.size:,} codes: "
            f"{self.path}",
        ]
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
                "file": str(self.path),
                "num_frames": self.num_frames,
                "size": list(self.size),
                "num_codes": int(self.clip.codes.size),
                "quality": quality,
            }
        )


def decode_clip(
    output_uri: str, clip_id: str | None, path: Path, *, compare: bool, device: str = "auto"
) -> Decoded:
    """Decode a clip's codes to frames and write them to ``path``.

    Args:
        clip_id: which clip; None for the first of the output.
        path: ``.mp4`` for the whole clip, ``.png`` for a grid of its frames.
        compare: decode the source again, measure PSNR and SSIM against it, and show it: on the
            left of a video, above each row of an image.
        device: ``"auto"``, or a torch device.

    Raises:
        TokpipeError: the output, clip or decoder does not exist, or weights or source have changed.
    """
    if path.suffix not in (".mp4", ".png"):
        raise ConfigError(
            f"{path}: ends in {path.suffix or 'nothing'}, but frames are written as .mp4 (all of "
            "them) or .png (a few, side by side): use one of these endings"
        )
    if not path.parent.is_dir():
        raise ConfigError(
            f"{path}: the folder {path.parent} does not exist, so the clip cannot be written. "
            "Create it, or choose another place with -o"
        )
    output = open_output(output_uri)
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
    return Decoded(clip, total, (height, width), quality, path)


def _find(output: Output, clip_id: str | None) -> Clip:
    if clip_id is not None:
        return output.clip(clip_id)
    first = next(output.clips(), None)
    if first is None:
        raise NotFound(
            f"{output.store.uri}: has no tokenized clip yet, so there is nothing to decode. Wait "
            "for the job's first shard, or list the rejected clips with tokpipe rejected"
        )
    return first
