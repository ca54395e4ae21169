"""``tokpipe decode``: writes one clip of an output as a video or an image."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokpipe.errors import NotFound
from tokpipe.media.quality import Frames, Quality
from tokpipe.media.writing import FrameGrid, VideoWriter, write_png
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
    num_matches: int | None = None
    """How many clips match the source that was asked for; this is the first."""

    def lines(self) -> Iterator[str]:
        height, width = self.size
        num = self.num_matches or 0
        first = f", the first of {num:,} clips whose source matches" if num > 1 else ""
        yield f"clip {self.clip.clip_id} of {self.clip.source_uri}{first}"
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
            "num_matches": self.num_matches,
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
    clip, num_matches = _find(output, clip_id, source)
    total = sum(chunk.n_frames for chunk in clip.chunks)
    quality = Quality() if compare else None
    height = width = 0
    with ExitStack() as stack:
        both = stack.enter_context(SideBySide(output, device))
        grid = FrameGrid(total, GRID_FRAMES, columns=GRID_FRAMES if compare else 4)
        add: Callable[[Frames], None] = grid.add
        if path.suffix == ".mp4":
            add = stack.enter_context(VideoWriter(path, clip.fps)).write
        for block, original in both.blocks(clip, with_source=compare):
            height, width = block.shape[1:3]
            if quality is not None and original is not None:
                quality.add(original, block)
                block = np.concatenate([original, block], axis=2 if path.suffix == ".mp4" else 1)
            add(block)
        if path.suffix == ".png":
            write_png(path, grid.picture())
    return Decoded(clip, total, (height, width), quality, path, num_matches)


def _find(output: Output, clip_id: str | None, source: str | None) -> tuple[Clip, int | None]:
    uri = output.store.uri
    if clip_id is None and source is None:
        if (first := next(output.clips(), None)) is not None:
            return first, None
        raise NotFound(
            f"{uri}: has no tokenized clip yet, so there is nothing to decode. Wait for the job's "
            "first shard, or list the rejected clips with tokpipe rejected"
        )
    if clip_id is not None:
        with suppress(NotFound):
            return output.clip(clip_id), None
    is_meant = source_matcher(source) if source is not None else str(clip_id).__eq__
    key = "clip_id" if source is None else "source_uri"
    columns = ["clip_id", "source_uri"]
    ids = (row["clip_id"] for _, row in side_rows(output, columns) if is_meant(row[key]))
    if (chosen := next(ids, None)) is not None:
        return output.clip(chosen), 1 + sum(1 for _ in ids)
    for rejected in output.rejected():
        ref = rejected.ref
        if is_meant(getattr(ref, key)):
            raise NotFound(
                f"{uri}: clip {ref.clip_id} of {ref.source_uri} was rejected as {rejected.reason}, "
                f"so it has no codes: {rejected.message}"
            )
    problem = f"has no clip {clip_id!r}" if source is None else f"no source matches {source!r}"
    raise NotFound(f"{uri}: {problem}. List clips with tokpipe ls {uri}")
