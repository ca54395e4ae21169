"""What a sample of shards holds: how often codes occur, and how long clips are."""

from collections import Counter
from dataclasses import dataclass, field
from random import Random

from tokpipe.errors import CorruptOutput
from tokpipe.formats.shard_reader import ShardReader
from tokpipe.reader import Clip, Output
from tokpipe.telemetry.usage import CodeUsage
from tokpipe.verbs.inspect import evenly_spread


@dataclass(slots=True)
class Sample:
    """Counts over shards that are evenly spread over the output."""

    num_shards_of: int
    """Shards of the output."""
    usage: CodeUsage
    num_shards: int = 0
    """Shards that were counted."""
    frames_per_clip: Counter[int] = field(default_factory=Counter)
    """Number of clips by their number of frames."""
    codes_per_clip: Counter[int] = field(default_factory=Counter)
    damaged: list[str] = field(default_factory=list)
    """An error message for each chosen shard that could not be counted."""
    clips: list[Clip] = field(default_factory=list)
    """Some clips to show."""

    @property
    def num_clips(self) -> int:
        return self.frames_per_clip.total()


def take_sample(output: Output, *, num_shards: int, num_clips: int, seed: int) -> Sample:
    """Fetch and verify shards (0: all), and count what they hold; ``seed`` selects the clips."""
    chosen = evenly_spread(len(output.shards), num_shards)
    random = Random(seed)
    sample = Sample(len(output.shards), CodeUsage(output.tokenizer.codebook_size))
    for number, index in enumerate(chosen, 1):
        info = output.shards[index]
        # Later shards make up for earlier ones with too few clips.
        wanted = num_clips * number // len(chosen) - len(sample.clips)
        try:
            shard = output.verified_shard(info)
            frames, codes = _count(shard, sample.usage)
            clip_ids = random.sample(list(frames), min(wanted, len(frames)))
            sample.clips += output.clips_of(info, shard, clip_ids)
        except CorruptOutput as error:
            sample.damaged.append(str(error))
            continue
        sample.num_shards += 1
        sample.frames_per_clip.update(frames.values())
        sample.codes_per_clip.update(codes.values())
    return sample


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
