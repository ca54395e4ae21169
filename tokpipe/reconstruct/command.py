"""``tokpipe decode``: writes one clip of an output as a video or an image."""

from collections.abc import Iterator
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


class Decoded:
    """A clip of an output, decoded from its codes and written as a video or an image."""

    def __init__(
        self,
        output: Output,
        path: Path,
        *,
        clip_id: str | None = None,
        source: str | None = None,
        compare: bool,
        device: str = "auto",
    ) -> None:
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
        self.clip, self.path = _find(output, clip_id, source), path
        self.num_frames = sum(chunk.n_frames for chunk in self.clip.chunks)
        self.quality = Quality() if compare else None  # Against the source
        self.size = (0, 0)  # (height, width) of a frame
        with SideBySide(output, device) as both:
            blocks = self._shown(both.blocks(self.clip, with_source=compare))
            if path.suffix == ".mp4":
                write_video(path, self.clip.fps, blocks)
            else:
                columns = GRID_FRAMES if compare else 4
                write_png(path, frame_grid(blocks, self.num_frames, GRID_FRAMES, columns))

    def _shown(self, blocks: Iterator[tuple[Frames, Frames | None]]) -> Iterator[Frames]:
        """Yield what is shown of each chunk, and measure its quality."""
        for block, original in blocks:
            self.size = block.shape[1:3]
            if self.quality is not None and original is not None:
                self.quality.add(original, block)
                axis = 2 if self.path.suffix == ".mp4" else 1
                block = np.concatenate([original, block], axis=axis)
            yield block

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
