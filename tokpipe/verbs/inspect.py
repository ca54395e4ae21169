"""``tokpipe inspect``: an output's codes, columns and first clips, from a few of its shards."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from random import Random
from typing import Any

from tokpipe.errors import CorruptOutput
from tokpipe.formats.shard_reader import ShardReader
from tokpipe.reader import Clip, Output
from tokpipe.telemetry.human import counted
from tokpipe.telemetry.usage import CodeUsage

_BAR = " ▁▂▃▄▅▆▇█"
_BINS = 64  # Equal parts of the codebook, in the histogram


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
        num_chosen = min(num_shards, self.num_shards_of) or self.num_shards_of
        chosen = [index * self.num_shards_of // num_chosen for index in range(num_chosen)]
        random = Random(seed)
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


class Inspection(Sample):
    """A look at an output: how often codes occur in some of its shards, and its first clips."""

    def __init__(self, output: Output, *, num_shards: int = 8, num_clips: int = 3) -> None:
        super().__init__(output, num_shards=num_shards, num_clips=0, seed=0)
        if self.damaged:
            raise CorruptOutput(self.damaged[0])
        self.output, self.clips = output, list(islice(output.clips(), num_clips))

    def to_dict(self) -> dict[str, Any]:
        output, usage = self.output, self.usage
        return {
            "uri": output.store.uri,
            "dataset": output.record.dataset,
            "fingerprint": output.fingerprint,
            "tokenizer": output.tokenizer.model_dump(mode="json"),
            "schema": {one.name: str(one.type) for one in output.schema},
            "num_rows_left": output.num_rows_left,
            "num_clips": output.num_clips,
            "num_codes": output.num_codes,
            "num_shards": self.num_shards_of,
            "encoders": dict(output.state.totals.encoders),
            "counted": {
                "num_shards": self.num_shards,
                "num_codes": usage.num_codes,
                "num_distinct": usage.num_used,
                "entropy_bits": usage.entropy_bits,
                "perplexity": usage.perplexity,
                "histogram": usage.histogram(_BINS).tolist(),
                "most_frequent": usage.most_frequent(),
            },
            "clips": [
                {
                    "clip_id": clip.clip_id,
                    "source_uri": clip.source_uri,
                    "shape": clip.codes.shape,
                    "fps": clip.fps,
                    "metadata": {key: str(value) for key, value in clip.metadata.items()},
                }
                for clip in self.clips
            ],
        }

    def lines(self) -> Iterator[str]:
        output, spec, usage = self.output, self.output.tokenizer, self.usage
        yield f"{output.store.uri}: {output.record.dataset}, fingerprint {output.fingerprint}"
        yield (
            f"  {spec.name}: codes 0 to {spec.codebook_size - 1:,} ({spec.code_dtype}), "
            f"{spec.temporal_stride}x{spec.spatial_stride}x{spec.spatial_stride} pixels each, "
            f"chunks {spec.chunk_policy}"
        )
        shards = counted(self.num_shards_of, "shard")
        yield f"  {counted(output.num_clips, 'clip')}, {output.num_codes:,} codes in {shards}"
        yield f"  encoders: {output.state.totals.encoders_text()}"
        if output.incomplete:
            yield f"  {output.incomplete}"
        yield "columns of shards/*.parquet, one row per chunk:"
        for one in output.schema:
            inner: Any = getattr(one.type, "value_type", None)
            yield f"  {one.name:18} {one.type if inner is None else f'list of {inner}'}"
        if self.clips:
            yield "clips:"
        for clip in self.clips:
            codes = " ".join(map(str, clip.codes.ravel()[:8].tolist()))
            yield f"  {clip.clip_id} {clip.codes.shape}, {clip.fps:g} frames/s: {codes} ..."
            carried = "".join(f", {key}={value!s:.60}" for key, value in clip.metadata.items())
            yield f"    {clip.source_uri}{carried}"
        if not usage.num_codes:
            yield "no codes yet"
            return
        part = "all" if self.num_shards == self.num_shards_of else f"{self.num_shards:,}"
        yield f"{usage.num_codes:,} codes of {part} shards:"
        yield (
            f"  {usage.num_used:,} of {spec.codebook_size:,} occur ({usage.used_fraction:.1%}); "
            f"entropy {usage.entropy_bits:.2f} bits, perplexity {usage.perplexity:,.0f}"
        )
        often = ", ".join(f"{code} ({share:.1%})" for code, share in usage.most_frequent())
        yield f"  most frequent: {often}"
        counts = usage.histogram(_BINS)
        bars = "".join(_BAR[int(7 * one / counts.max()) + 1 if one else 0] for one in counts)
        yield f"  0 {bars} {spec.codebook_size - 1:,}"  # only empty bins are blank
