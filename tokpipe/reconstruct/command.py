"""``tokpipe decode``: one clip of an output, as a video or a picture to look at."""

from __future__ import annotations

import json
import math
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tokpipe.errors import ConfigError, NotFound
from tokpipe.media.quality import Comparison, Quality
from tokpipe.media.writing import FrameGrid, VideoWriter, write_png
from tokpipe.reader import Clip, Output, open_output
from tokpipe.reconstruct.side_by_side import SideBySide

GRID_FRAMES = 8
"""Frames that a picture shows."""

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class Decoded:
    """What ``decode_clip`` wrote."""

    clip: Clip
    num_frames: int
    size: tuple[int, int]
    """(height, width) of a reconstructed frame."""
    quality: Quality | None
    """Against the source; None if that was not asked for."""
    path: Path

    def lines(self) -> list[str]:
        """What was done, for people."""
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
        """What was done, for programs; a PSNR without bound is null."""
        quality = None
        if self.quality is not None:
            psnr = self.quality.psnr_db
            quality = {
                "psnr_db": psnr if math.isfinite(psnr) else None,
                "ssim": self.quality.ssim,
            }
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
    output_uri: str,
    clip_id: str | None,
    path: Path,
    *,
    compare: bool,
    device: str = "auto",
) -> Decoded:
    """Turn a clip's codes back into frames and write them to ``path``.

    Args:
        clip_id: which clip; the first of the output if None.
        path: ``.mp4`` for the whole clip, ``.png`` for a grid of frames from it.
        compare: read the source again, measure PSNR and SSIM against it, and show it too: on the
            left of a video, above each row of a picture.
        device: ``"auto"``, or a torch device.

    Raises:
        TokpipeError: there is no such output or clip, its tokenizer has no decoder, or its
            weights or source are not what they were.
    """
    if path.suffix not in (".mp4", ".png"):
        raise ConfigError(
            f"{path}: ends in {path.suffix or 'nothing'}, and frames are written as .mp4 (all of "
            "them) or .png (a few, side by side): give the file one of these endings"
        )
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: its folder does not exist, so nothing can be written: make it")
    output = open_output(output_uri)
    clip = _find(output, clip_id)
    total = sum(chunk.n_frames for chunk in clip.chunks)
    comparison = Comparison() if compare else None
    height = width = 0
    with ExitStack() as stack:
        both = stack.enter_context(SideBySide(output, device))
        picture: _Mp4 | _Png
        if path.suffix == ".mp4":
            picture = _Mp4(stack.enter_context(VideoWriter(path, clip.fps)))
        else:
            picture = _Png(path, total, with_source=compare)
        for block, original in both.blocks(clip, with_source=compare):
            height, width = block.shape[1:3]
            if comparison is not None and original is not None:
                comparison.add(original, block)
            picture.add(block, original)
        picture.finish()
    quality = None if comparison is None else comparison.quality()
    return Decoded(clip, total, (height, width), quality, path)


def _find(output: Output, clip_id: str | None) -> Clip:
    if clip_id is not None:
        return output.clip(clip_id)
    first = next(output.clips(), None)
    if first is None:
        raise NotFound(
            f"{output.store.uri}: holds no tokenized clip yet, so there is nothing to decode. Wait "
            "for the job's first shard, or look at what was rejected"
        )
    return first


class _Mp4:
    def __init__(self, writer: VideoWriter) -> None:
        self._writer = writer

    def add(self, frames: Frames, original: Frames | None) -> None:
        """Append frames, to the right of their originals."""
        if original is not None:
            frames = np.concatenate([original, frames], axis=2)
        self._writer.write(frames)

    def finish(self) -> None:
        """Nothing is left to do: the writer closes itself."""


class _Png:
    def __init__(self, path: Path, total: int, *, with_source: bool) -> None:
        self._path = path
        self._grid = FrameGrid(total, GRID_FRAMES, columns=GRID_FRAMES if with_source else 4)

    def add(self, frames: Frames, original: Frames | None) -> None:
        """Look at frames; originals stand above them."""
        if original is not None:
            frames = np.concatenate([original, frames], axis=1)
        self._grid.add(frames)

    def finish(self) -> None:
        write_png(self._path, self._grid.picture())
