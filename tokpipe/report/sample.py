"""What some shards of an output hold: how often codes occur, and how long clips are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random

import numpy as np

from tokpipe.errors import CorruptOutput
from tokpipe.formats.shard_reader import ShardReader
from tokpipe.reader import Clip, Output
from tokpipe.telemetry.usage import CodeUsage
from tokpipe.verbs.inspect import spread

_COLUMNS = ["clip_id", "n_frames", "t", "h", "w", "codes"]


@dataclass(frozen=True, slots=True)
class Sample:
    """Counts over shards that are spread evenly over all."""

    num_shards: int
    """Those that were counted."""
    num_shards_of: int
    """Those of the output."""
    usage: CodeUsage
    frames_per_clip: Counter[int] = field(default_factory=Counter)
    """Clips by their number of frames."""
    codes_per_clip: Counter[int] = field(default_factory=Counter)
    damaged: list[str] = field(default_factory=list)
    """What was found wrong with shards that had been chosen and could not be counted."""
    clips: list[Clip] = field(default_factory=list)
    """Some of each, to look at."""

    @property
    def is_all(self) -> bool:
        return self.num_shards == self.num_shards_of

    @property
    def num_clips(self) -> int:
        return self.frames_per_clip.total()


def take_sample(output: Output, *, num_shards: int, num_clips: int, seed: int) -> Sample:
    """Fetch and verify some shards, one after the other, and count what they hold.

    Args:
        num_shards: how many; 0 for all.
        num_clips: how many clips to keep, evenly from these shards.
        seed: decides which clips.
    """
    chosen = spread(len(output.shards), num_shards)
    random = Random(seed)
    usage = CodeUsage(output.tokenizer.codebook_size)
    frames: Counter[int] = Counter()
    codes: Counter[int] = Counter()
    clips: list[Clip] = []
    damaged: list[str] = []
    for place, index in enumerate(chosen):
        info = output.shards[index]
        # Later shards make up for what earlier ones did not have.
        wanted = num_clips * (place + 1) // len(chosen) - len(clips)
        try:
            shard = output.verified_shard(info)
            found = _lengths(shard, usage)
            names = random.sample(list(found), min(wanted, len(found)))
            clips += output.clips_of(info, shard, names)
        except CorruptOutput as error:
            damaged.append(str(error))
            continue
        for num_frames, num_codes in found.values():
            frames[num_frames] += 1
            codes[num_codes] += 1
    return Sample(
        len(chosen) - len(damaged),
        len(output.shards),
        usage,
        frames,
        codes,
        damaged,
        clips,
    )


def _lengths(shard: ShardReader, usage: CodeUsage) -> dict[str, tuple[int, int]]:
    """Count a shard's codes; return the frames and the codes of each clip by its id."""
    lengths: dict[str, tuple[int, int]] = {}
    for group in range(shard.num_row_groups):
        rows = shard.read_row_group(group, _COLUMNS)
        usage.update(rows.column("codes").flatten().to_numpy())
        num_codes = np.prod([rows.column(name).to_numpy().astype(np.int64) for name in "thw"], 0)
        for clip_id, num_frames, number in zip(
            rows.column("clip_id").to_pylist(),
            rows.column("n_frames").to_pylist(),
            num_codes.tolist(),
            strict=True,
        ):
            frames_before, codes_before = lengths.get(clip_id, (0, 0))
            lengths[clip_id] = frames_before + num_frames, codes_before + number
    return lengths
