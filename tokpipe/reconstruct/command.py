"""``tokpipe decode``: writes one clip of an output as a video or an image."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokpipe.errors import NotFound
from tokpipe.media.quality import Frames, Quality
from tokpipe.media.writing import frame_grid, write_png, write_video
from tokpipe.reader import Clip, Output
from tokpipe.reader.search import side_rows, source_matcher
from tokpipe.reconstruct.frames import SideBySide
from tokpipe.telemetry.human import counted

GRID_FRAMES = 8  # Frames in an image


@dataclass(frozen=True)
class Decoded:
    """What ``decode_clip`` wrote."""

    clip: Clip
    num_frames: int
    size: tuple[int, int]  # (height, width) of a reconstructed frame
    quality: Quality | None  # Against the source; None without a comparison
    path: Path

    def lines(self) -> Iterator[str]:
        height, width = self.size
        yield f"clip {self.clip.clip_id} of {self.clip.source_uri}"
        size, codes = f"{height}x{width}", f"{self.clip.codes.size:,} codes"
        yield f"{counted(self.num_frames, 'frame')} of {size} from {codes}: {self.path}"
        if (quality := self.quality) is not None:
            values = f"PSNR {quality.psnr_db:.2f} dB, SSIM {quality.ssim:.4f}"
            yield f"against the source: {values} (means over frames)"

    def to_dict(self) -> dict[str, Any]:
        quality = self.quality
        return {
            "clip_id": self.clip.clip_id,
            "source_uri": self.clip.source_uri,
            "file": self.path,
            "num_frames": self.num_frames,
            "size": self.size,
            "num_codes": self.clip.codes.size,
            "quality": quality and {"psnr_db": quality.psnr_db, "ssim": quality.ssim},
        }


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

    Raises:
        TokpipeError: the clip or decoder does not exist, or weights or source have changed.
    """
    clip = _find(output, clip_id, source)
    total = sum(chunk.n_frames for chunk in clip.chunks)
    quality = Quality() if compare else None
    height = width = 0

    def blocks(both: SideBySide) -> Iterator[Frames]:
        nonlocal height, width
        for block, original in both.blocks(clip, with_source=compare):
            height, width = block.shape[1:3]
            if quality is not None and original is not None:
                quality.add(original, block)
                block = np.concatenate([original, block], axis=2 if path.suffix == ".mp4" else 1)
            yield block

    with SideBySide(output, device) as both:
        if path.suffix == ".mp4":
            write_video(path, clip.fps, blocks(both))
        else:
            columns = GRID_FRAMES if compare else 4
            write_png(path, frame_grid(blocks(both), total, GRID_FRAMES, columns))
    return Decoded(clip, total, (height, width), quality, path)


def _find(output: Output, clip_id: str | None, source: str | None) -> Clip:
    if clip_id is None and source is not None:
        is_meant = source_matcher(source)
        rows = side_rows(output, ["clip_id", "source_uri"])
        clip_id = next((row["clip_id"] for row in rows if is_meant(row["source_uri"])), None)
    if clip_id is not None:
        return output.clip(clip_id)
    if source is None and (first := next(output.clips(), None)) is not None:
        return first
    lacks = (
        "no tokenized clip yet" if source is None else f"no clip whose source matches {source!r}"
    )
    uri = output.store.uri
    raise NotFound(f"{uri}: has {lacks}. See tokpipe ls {uri} and tokpipe rejected {uri}")
