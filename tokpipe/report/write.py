"""Writes a report as one HTML file. The style is inline, so it fetches nothing."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tokpipe.errors import TokpipeError
from tokpipe.media.quality import Quality
from tokpipe.reader import Clip, Output
from tokpipe.report.history import History, read_groups
from tokpipe.report.page import page
from tokpipe.storage.local_files import write_file
from tokpipe.telemetry.human import size_text
from tokpipe.verbs.inspect import Sample
from tokpipe.verbs.status import Status

if TYPE_CHECKING:
    from tokpipe.reconstruct.frames import SideBySide

NUM_FRAMES = 4  # Frames to show of each clip
MAX_FRAMES = 256  # Only the first chunks of a longer clip are decoded and compared


class Pair:
    """One clip beside its source. Pictures are JPEG files with some of its frames side by side."""

    def __init__(self, both: "SideBySide", clip: Clip) -> None:
        from tokpipe.media.writing import frame_grid, jpeg_bytes

        ends = accumulate(chunk.n_frames for chunk in clip.chunks)
        first = [chunk for chunk, end in zip(clip.chunks, ends, strict=True) if end <= MAX_FRAMES]
        self.clip = replace(clip, chunks=tuple(first) or clip.chunks[:1])
        self.num_frames = sum(chunk.n_frames for chunk in self.clip.chunks)  # That were decoded
        self.shown = min(self.num_frames, NUM_FRAMES)  # Frames in each picture
        self.problem: str | None = None  # Why the source is missing
        self.quality: Quality | None = Quality()  # Against the source; None without it

        def picture() -> NDArray[np.uint8]:
            blocks = both.shown(self.clip, self.quality)
            return frame_grid(blocks, self.num_frames, NUM_FRAMES, columns=NUM_FRAMES)

        try:
            found = picture()
        except TokpipeError as error:
            self.problem, self.quality = str(error), None
            found = picture()
        *source, decoded = np.split(found, 1 if self.quality is None else 2)
        self.size = decoded.shape[0], decoded.shape[1] // self.shown  # (height, width) of a frame
        self.decoded = jpeg_bytes(decoded)
        self.source = jpeg_bytes(*source) if source else None


def _pairs(output: Output, clips: Sequence[Clip], device: str) -> tuple[list[Pair], str | None]:
    """Decode clips together with their sources. Weights, sources or torch may well be missing on
    this machine; then return what is missing."""
    try:
        from tokpipe.reconstruct.frames import SideBySide

        with SideBySide(output, device) as both:
            return [Pair(both, clip) for clip in clips], None
    except ImportError as error:
        return [], f"{error}. Decoding needs what a worker has: pip install tokpipe[run]"
    except TokpipeError as error:
        return [], str(error)


class WrittenReport:
    """A report on an output, written as one HTML file. The file appears when it is complete.

    Reads the whole manifest (a sample of a long one), and fetches and verifies a sample of shards.
    If sources, weights or torch are missing or not trusted, the report says so. Memory grows with
    the number of shards, as that of ``output`` does, and with nothing else.
    """

    def __init__(
        self,
        output: Output,
        path: Path,
        *,
        num_shards: int = 8,
        num_pairs: int = 3,
        seed: int = 0,
        device: str = "auto",
        now: datetime | None = None,
    ) -> None:
        """Count codes in ``num_shards`` shards (0: all); show ``num_pairs`` clips, by ``seed``."""
        now = now or datetime.now(UTC)
        self.path, self.output = path, output
        self.made_at = now.isoformat(timespec="seconds")  # ISO 8601, in UTC
        self.status = Status(output, now=now)
        self.history = History(read_groups(output))
        self.sample = Sample(output, num_shards=num_shards, num_clips=num_pairs, seed=seed)
        self.pairs: list[Pair] | None = None
        self.no_pairs: str | None = None  # Why clips cannot be decoded here
        if num_pairs:
            self.pairs, self.no_pairs = _pairs(output, self.sample.clips, device)
        self.max_bits_per_code = math.log2(output.tokenizer.codebook_size)
        """Entropy if all codes of the codebook were equally frequent."""
        worked_s, num_frames = self.history.worked_s, self.status.totals.num_frames
        self.frames_per_s = num_frames / worked_s if worked_s > 0 else None
        """Mean over the working time; None if that is unknown."""
        data = page(self).encode(errors="backslashreplace")
        write_file(path, data)
        self.size_bytes = len(data)

    def to_dict(self) -> dict[str, Any]:
        sample, speed = self.sample, self.history.whole.speed
        usage, pairs = sample.usage, None
        if self.pairs is not None:
            clips = [
                {
                    "clip_id": one.clip.clip_id,
                    "psnr_db": one.quality and one.quality.psnr_db,
                    "ssim": one.quality and one.quality.ssim,
                    "problem": one.problem,
                }
                for one in self.pairs
            ]
            pairs = {"problem": self.no_pairs, "clips": clips}
        return {
            "file": self.path,
            "size_bytes": self.size_bytes,
            "frames_per_s": self.frames_per_s,
            "worked_s": self.history.worked_s,
            "num_drivers": len(self.history.starts_s),
            "speed_of_light": None if speed is None else speed.share,
            "limited_by": None if speed is None else speed.limit,
            "sample": {
                "num_shards": sample.num_shards,
                "num_shards_of": sample.num_shards_of,
                "num_clips": sample.num_clips,
                "num_codes": usage.num_codes,
                "num_distinct": usage.num_used,
                "entropy_bits": usage.entropy_bits,
                "perplexity": usage.perplexity if usage.num_codes else None,
                "damaged": sample.damaged,
            },
            "pairs": pairs,
            "status": self.status.to_dict(),
        }

    def lines(self) -> Iterator[str]:
        sample = self.sample
        yield f"{self.path}: report on {self.status.uri}, {size_text(self.size_bytes)}"
        shards = f"{sample.num_shards:,} of {sample.num_shards_of:,} shards"
        yield f"  codes and lengths were counted in {shards}"
        if incomplete := self.output.incomplete:
            yield f"  {incomplete}"
        for message in sample.damaged:
            yield f"  left out: {message}"
        if self.no_pairs is not None:
            yield f"  without pictures: {self.no_pairs}"
        for pair in self.pairs or ():
            if pair.problem is not None:
                yield f"  without the source of clip {pair.clip.clip_id}: {pair.problem}"
