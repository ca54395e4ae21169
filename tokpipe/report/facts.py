"""What a report shows of a sample of shards: counts, and clips beside their sources."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from random import Random
from typing import TYPE_CHECKING

from tokpipe.errors import CorruptOutput, TokpipeError
from tokpipe.formats.shard_reader import ShardReader
from tokpipe.reader import Clip, Output
from tokpipe.telemetry.usage import CodeUsage
from tokpipe.verbs.inspect import evenly_spread

if TYPE_CHECKING:
    from tokpipe.reconstruct import SideBySide

NUM_FRAMES = 4  # Frames to show of each clip
MAX_FRAMES = 256  # Only the first chunks of a longer clip are decoded and compared


class Sample:
    """Counts over shards that are evenly spread over the output, fetched and verified."""

    def __init__(self, output: Output, *, num_shards: int, num_clips: int, seed: int) -> None:
        """``num_shards`` is 0 for all; ``seed`` selects ``num_clips`` clips to show."""
        self.num_shards_of = len(output.shards)  # Shards of the output
        self.num_shards = 0  # Shards that were counted
        self.usage = CodeUsage(output.tokenizer.codebook_size)
        self.frames_per_clip = Counter[int]()  # Number of clips by their number of frames
        self.codes_per_clip = Counter[int]()
        self.damaged: list[str] = []  # An error message for each shard that could not be counted
        self.clips: list[Clip] = []
        chosen, random = evenly_spread(self.num_shards_of, num_shards), Random(seed)
        for number, index in enumerate(chosen, 1):
            info = output.shards[index]
            # Later shards make up for earlier ones with too few clips.
            wanted = num_clips * number // len(chosen) - len(self.clips)
            try:
                shard = output.verified_shard(info)
                frames, codes = _count(shard, self.usage)
                clip_ids = random.sample(list(frames), min(wanted, len(frames)))
                self.clips += output.clips_of(info, shard, clip_ids)
            except CorruptOutput as error:
                self.damaged.append(str(error))
                continue
            self.num_shards += 1
            self.frames_per_clip.update(frames.values())
            self.codes_per_clip.update(codes.values())
        self.num_clips = self.frames_per_clip.total()


def _count(shard: ShardReader, usage: CodeUsage) -> tuple[Counter[str], Counter[str]]:
    """Add a shard's codes to ``usage``; return the frames and the codes of each clip, by id."""
    frames: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    for group in range(shard.num_row_groups):
        rows = shard.read_row_group(group, ["clip_id", "n_frames", "codes"])
        blocks = rows.column("codes")
        usage.update(blocks.flatten().to_numpy())
        clip_ids = rows.column("clip_id").to_pylist()
        lengths = rows.column("n_frames").to_pylist(), blocks.value_lengths().to_pylist()
        for clip_id, num_frames, num_codes in zip(clip_ids, *lengths, strict=True):
            frames[clip_id] += num_frames
            codes[clip_id] += num_codes
    return frames, codes


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
