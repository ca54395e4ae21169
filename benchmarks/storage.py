"""Bits per code of whole shards, against what the codes themselves hold."""

import io
import math
from collections.abc import Iterator

import numpy as np
import pyarrow.parquet as pq

from benchmarks.coded import CODES_PER_CLIP, Kind, clips_of, draw_codes
from benchmarks.figures import Figure, Result
from tokpipe.formats.shard import CODES_PER_ROW_GROUP, ShardMetadata, TokenizerSpec, build_shard
from tokpipe.types import ClipRef

CASES: tuple[tuple[Kind, int, float], ...] = (
    ("uniform", 8192, 1.03),
    ("uniform", 64_000, 1.03),
    ("Zipf", 8192, 1.30),
)


def run(quick: bool) -> Iterator[Result]:
    """Shard bytes by code over log2(K), or over the entropy of the codes where they are skewed."""
    num_clips = (1 if quick else 16) * CODES_PER_ROW_GROUP // CODES_PER_CLIP
    for kind, codebook_size, target in CASES:
        codes = draw_codes(kind, codebook_size, num_clips)
        # Real clip ids are hashes, whose digits do not compress.
        ids = np.random.default_rng(0).bytes(16 * num_clips).hex()
        refs = [
            ClipRef(ids[32 * row :][:32], row, 0, 1, f"s3://a-bucket/videos/{row:010}.mp4")
            for row in range(num_clips)
        ]
        shard = build_shard(clips_of(refs, codes), _metadata(codebook_size))
        bits = len(shard) * 8 / codes.size
        limit = math.log2(codebook_size)
        if kind != "uniform":
            shares = np.bincount(codes.ravel()) / codes.size
            shares = shares[shares > 0]
            limit = -float((shares * np.log2(shares)).sum())
        codes_bytes, encodings = _codes_column(shard)
        yield Figure(
            f"storage: {kind} codes, K = {codebook_size:,}, bits over "
            f"{'log2(K)' if kind == 'uniform' else 'entropy'}",
            bits / limit,
            "x",
            target,
            "lower",
            {
                "bits_per_code": round(bits, 3),
                "limit_bits": round(limit, 3),
                "bits_of_codes_column": round(codes_bytes * 8 / codes.size, 3),
                "bits_of_all_else": round((len(shard) - codes_bytes) * 8 / codes.size, 4),
                "codes": codes.size,
                "encodings": encodings,
            },
        )


def _metadata(codebook_size: int) -> ShardMetadata:
    spec = TokenizerSpec(
        name="synthetic",
        weights_hash="none",
        codebook_size=codebook_size,
        code_dtype="uint16",
        temporal_stride=4,
        spatial_stride=8,
        chunk_policy="independent",
    )
    return ShardMetadata("0" * 32, spec)


def _codes_column(shard: bytes) -> tuple[int, str]:
    """Bytes of the codes in all row groups, and how they are encoded."""
    footer = pq.read_metadata(io.BytesIO(shard))
    num_bytes = 0
    encodings: set[str] = set()
    for group in range(footer.num_row_groups):
        for column in range(footer.num_columns):
            chunk = footer.row_group(group).column(column)
            if chunk.path_in_schema.startswith("codes."):
                num_bytes += chunk.total_compressed_size
                encodings |= set(chunk.encodings)
    return num_bytes, "+".join(sorted(encodings))
