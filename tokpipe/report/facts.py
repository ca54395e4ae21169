"""What a report shows of some clips: pictures beside those of their sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING

from tokpipe.errors import TokpipeError
from tokpipe.reader import Clip, Output

if TYPE_CHECKING:
    from tokpipe.reconstruct import SideBySide

NUM_FRAMES = 4  # Frames to show of each clip
MAX_FRAMES = 256  # Only the first chunks of a longer clip are decoded and compared


class Pair:
    """One clip beside its source. Pictures are JPEG files with some of its frames side by side."""

    def __init__(self, both: SideBySide, clip: Clip) -> None:
        ends = accumulate(chunk.n_frames for chunk in clip.chunks)
        first = [chunk for chunk, end in zip(clip.chunks, ends, strict=True) if end <= MAX_FRAMES]
        self.clip = replace(clip, chunks=tuple(first) or clip.chunks[:1])
        self.num_frames = sum(chunk.n_frames for chunk in self.clip.chunks)  # That were decoded
        self.source: bytes | None = None
        self.psnr_db: float | None = None
        """Mean over the frames; infinite if a frame is equal, None without the source."""
        self.ssim: float | None = None
        self.problem: str | None = None  # Why the source is missing
        try:
            self._decode(both, with_source=True)
        except TokpipeError as error:
            self.problem = str(error)
            self._decode(both, with_source=False)

    def _decode(self, both: SideBySide, *, with_source: bool) -> None:
        from tokpipe.media.quality import Quality
        from tokpipe.media.writing import FrameGrid, jpeg_bytes

        num_frames, quality = self.num_frames, Quality()
        decoded, source = (FrameGrid(num_frames, NUM_FRAMES, NUM_FRAMES) for _ in range(2))
        for block, original in both.blocks(self.clip, with_source=with_source):
            decoded.add(block)
            if original is not None:
                source.add(original)
                quality.add(original, block)
            self.size = block.shape[1:3]  # (height, width) of a frame
        picture = decoded.picture()
        self.decoded = jpeg_bytes(picture)
        self.shown = picture.shape[1] // self.size[1]  # Frames in each picture
        if with_source:
            self.source = jpeg_bytes(source.picture())
            self.psnr_db, self.ssim = quality.psnr_db, quality.ssim


class Pairs:
    """Clips that are decoded together with their sources.

    Weights, sources or torch may well be missing on this machine. Then ``problem`` says what is
    missing.
    """

    def __init__(self, output: Output, clips: Sequence[Clip], device: str) -> None:
        self.pairs: list[Pair] = []
        self.problem: str | None = None
        try:
            from tokpipe.reconstruct import SideBySide

            with SideBySide(output, device) as both:
                self.pairs = [Pair(both, clip) for clip in clips]
        except ImportError as error:
            do = "Decoding needs what a worker has: pip install tokpipe[run]"
            self.problem = f"{error}. {do}"
        except TokpipeError as error:
            self.problem = str(error)
