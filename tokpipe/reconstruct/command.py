"""``tokpipe decode``: writes one clip of an output as a video or an image."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokpipe.errors import NotFound
from tokpipe.media.quality import Quality
from tokpipe.media.writing import frame_grid, write_png, write_video
from tokpipe.reader import Clip, Output
from tokpipe.reader.search import side_rows
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
        """Write a clip to ``path``: all of it as ``.mp4``, or a grid of its frames as ``.png``.

        It is the clip with this id, or the first whose source matches, or the first of the output.
        With ``compare``, its source is decoded again, measured against, and shown: on the left of
        a video, above each row of an image.
        """
        self.clip, self.path = _find(output, clip_id, source), path
        self.num_frames = sum(chunk.n_frames for chunk in self.clip.chunks)
        self.quality = Quality() if compare else None  # Against the source
        sides = self.clip.codes.shape[1:3]
        self.size = [side * output.tokenizer.spatial_stride for side in sides]  # Height, width
        with SideBySide(output, device) as both:
            if path.suffix == ".mp4":
                write_video(path, self.clip.fps, both.shown(self.clip, self.quality, axis=2))
            else:
                blocks, columns = both.shown(self.clip, self.quality), GRID_FRAMES if compare else 4
                write_png(path, frame_grid(blocks, self.num_frames, GRID_FRAMES, columns))

    def lines(self) -> Iterator[str]:
        yield f"clip {self.clip.clip_id} of {self.clip.source_uri}"
        size, codes = "x".join(map(str, self.size)), f"{self.clip.codes.size:,} codes"
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
    if clip_id is not None:
        return output.clip(clip_id)
    if source is None:
        lacks, clip = "no tokenized clip yet", next(output.clips(), None)
    else:
        lacks = f"no clip whose source matches {source!r}"
        row = next(side_rows(output, ["clip_id", "source_uri"], source), None)
        clip = output.clip(row["clip_id"]) if row else None
    if clip is None:
        uri = output.store.uri
        raise NotFound(f"{uri}: has {lacks}. See tokpipe ls {uri} and tokpipe rejected {uri}")
    return clip
