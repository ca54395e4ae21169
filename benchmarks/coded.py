"""Clips of synthetic codes, and outputs of shards that hold them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.synthetic import begin_output
from tokpipe.formats.manifest import ManifestEntry, append
from tokpipe.plan import PlanReader
from tokpipe.stages.write import WriteStage
from tokpipe.types import ChunkSpan, ClipRef, EncodedClip

CHUNKS_PER_CLIP = 4
BLOCK = (5, 32, 32)
"""Codes of one chunk: 17 frames of 256x256 at strides of 4 and 8."""
CODES_PER_CLIP = CHUNKS_PER_CLIP * 5 * 32 * 32
_CHUNK_FRAMES = 17

Kind = Literal["uniform", "Zipf"]


def draw_codes(kind: Kind, codebook_size: int, num_clips: int, seed: int = 0) -> NDArray[np.uint16]:
    """(clips, chunks, t, h, w) of independent codes.

    Under Zipf the n-th most frequent code is n times rarer than the first; which code that is
    is drawn, because a codebook has no order.
    """
    rng = np.random.default_rng(seed)
    shape = (num_clips, CHUNKS_PER_CLIP, *BLOCK)
    if kind == "uniform":
        return rng.integers(0, codebook_size, shape, np.uint16)
    weights = 1 / np.arange(1, codebook_size + 1)
    ends = np.cumsum(weights) / weights.sum()
    ranks = np.searchsorted(ends, rng.random(shape, np.float32))
    names = np.random.default_rng(0).permutation(codebook_size).astype(np.uint16)
    return names[np.minimum(ranks, codebook_size - 1)]


def clips_of(refs: Sequence[ClipRef], codes: NDArray[np.uint16]) -> list[EncodedClip]:
    """Clips with these codes, as the encode stage returns them."""
    spans = tuple(
        ChunkSpan(index, index * _CHUNK_FRAMES, _CHUNK_FRAMES, 0, 0, 0, True)
        for index in range(CHUNKS_PER_CLIP)
    )
    pts_s = np.arange(CHUNKS_PER_CLIP * _CHUNK_FRAMES) / 8
    return [
        EncodedClip(ref, spans, tuple(blocks), pts_s, 8.0, "decord")
        for ref, blocks in zip(refs, codes, strict=True)
    ]


def write_shards(
    folder: Path, kind: Kind, *, num_shards: int, clips_per_shard: int
) -> Iterator[NDArray[np.uint16]]:
    """Write an output by the write stage (K = 8,192); yields each shard's codes in its order."""
    begun = begin_output(folder, num_shards * clips_per_shard)
    store, record, plan, job = begun.store, begun.record, begun.plan, begun.job
    stage = WriteStage(job.output, job.storage, record.tokenizer, record.fingerprint, plan)
    stage.setup()
    reader = PlanReader(store, plan)
    items = reader.items(range(reader.num_rows))
    refs = [ClipRef(item.row_id, item.row, 0, 1, item.source_uri) for item in items]
    for number in range(num_shards):
        codes = draw_codes(kind, record.tokenizer.codebook_size, clips_per_shard, seed=number)
        some = refs[number * clips_per_shard : (number + 1) * clips_per_shard]
        receipt = stage.process(f"s-{number}-a", clips_of(some, codes))
        assert append(store, ManifestEntry(number, "driver", "now", (receipt,)))
        yield codes[np.argsort([ref.clip_id for ref in some])]
