"""``tokpipe inspect``: what an output's codes mean and look like, from a few of its shards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokpipe.reader import Output
from tokpipe.reader.values import Clip
from tokpipe.telemetry.usage import CodeUsage

_BAR = "▁▂▃▄▅▆▇█"
_BINS = 64


def spread(total: int, number: int) -> list[int]:
    """Choose ``number`` of ``total`` places, evenly spread; all of them if it is 0."""
    chosen = min(number, total) or total
    return [index * total // chosen for index in range(chosen)]


@dataclass(frozen=True, slots=True)
class Inspection:
    """A look at an output."""

    output: Output
    num_shards: int
    """Shards whose codes were counted, spread evenly over all."""
    usage: CodeUsage
    clips: list[Clip] = field(default_factory=list)
    """The first of the first shard."""

    def to_json(self) -> str:
        """All of it on one line, with the counts of 64 equal parts of the codebook."""
        spec, usage = self.output.tokenizer, self.usage
        return json.dumps(
            {
                "uri": self.output.store.uri,
                "dataset": self.output.record.dataset,
                "fingerprint": self.output.fingerprint,
                "tokenizer": spec.model_dump(mode="json"),
                "schema": {one.name: str(one.type) for one in self.output.schema},
                "num_clips": self.output.num_clips,
                "num_codes": self.output.num_codes,
                "num_shards": len(self.output.shards),
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
        )

    def lines(self) -> Iterator[str]:
        """The same for people."""
        output, spec, usage = self.output, self.output.tokenizer, self.usage
        yield f"{output.store.uri}: {output.record.dataset}, fingerprint {output.fingerprint}"
        yield (
            f"  {spec.name}: codes 0 to {spec.codebook_size - 1:,} ({spec.code_dtype}), "
            f"{spec.temporal_stride}x{spec.spatial_stride}x{spec.spatial_stride} pixels each, "
            f"chunks {spec.chunk_policy}"
        )
        yield (
            f"  {output.num_clips:,} clips, {output.num_codes:,} codes in "
            f"{len(output.shards):,} shards"
        )
        yield "columns of shards/*.parquet, a row for each chunk:"
        for one in output.schema:
            yield f"  {one.name:18} {_type(one.type)}"
        if self.clips:
            yield "clips:"
        for clip in self.clips:
            codes = " ".join(map(str, clip.codes.ravel()[:8].tolist()))
            yield f"  {clip.clip_id} {clip.codes.shape}, {clip.fps:g}/s: {codes} ..."
            carried = "".join(f", {key}={value!s:.60}" for key, value in clip.metadata.items())
            yield f"    {clip.source_uri}{carried}"
        if not usage.num_codes:
            yield "no codes yet"
            return
        part = "all" if self.num_shards == len(output.shards) else f"{self.num_shards:,} shards"
        yield f"codes of {part}, {usage.num_codes:,}:"
        share = usage.num_used / spec.codebook_size
        yield (
            f"  {usage.num_used:,} of {spec.codebook_size:,} occur ({share:.1%}); entropy "
            f"{usage.entropy_bits:.2f} bits, perplexity {usage.perplexity:,.0f}"
        )
        often = ", ".join(f"{code} ({share:.1%})" for code, share in usage.most_frequent())
        yield f"  most frequent: {often}"
        yield f"  0 {_bars(usage.histogram(_BINS))} {spec.codebook_size - 1:,}"


def inspect(output: Output, *, num_shards: int = 8, num_clips: int = 3) -> Inspection:
    """Look at some shards of an output, which are fetched whole and verified.

    Args:
        num_shards: how many to count the codes of, spread evenly; 0 for all.
        num_clips: how many clips to show.
    """
    chosen = spread(len(output.shards), num_shards)
    return Inspection(
        output,
        len(chosen),
        _usage(output, chosen),
        list(islice(output.clips(), num_clips)) if num_clips else [],
    )


def _usage(output: Output, shards: list[int]) -> CodeUsage:
    usage = CodeUsage(output.tokenizer.codebook_size)
    for index in shards:
        shard = output.verified_shard(output.shards[index])
        for group in range(shard.num_row_groups):
            codes = shard.read_row_group(group, ["codes"]).column("codes")
            usage.update(codes.flatten().to_numpy())
    return usage


def _bars(counts: NDArray[np.int64]) -> str:
    top = max(1, int(counts.max()))
    return "".join(" " if not one else _BAR[int((len(_BAR) - 1) * one / top)] for one in counts)


def _type(kind: Any) -> str:
    """Name a column's Arrow type."""
    inner = getattr(kind, "value_type", None)
    return str(kind) if inner is None else f"list of {inner}"
