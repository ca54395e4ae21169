"""Writes an output with a leftover, whose shards encode their codes differently."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.formats.formats_helpers import encoded_clip, zipf
from tests.reader.reader_helpers import begin, commit, put_shard
from tokpipe.config.job import StoreOptions
from tokpipe.storage import Store
from tokpipe.types import EncodedClip

ENCODINGS = ("BYTE_STREAM_SPLIT", "BYTE_STREAM_SPLIT", "dictionary")
"""By shard: uniform codes, many skewed ones, and only two different codes."""

_GRIDS = ((16, 16), (64, 64), (16, 16))


def write_output(folder: Path, codebook_size: int = 8192) -> None:
    """Write three shards of four clips each, listed in two entries, and an unlisted one."""
    store = Store(str(folder), StoreOptions())
    begin(store, codebook_size, range(12))
    rng = np.random.default_rng(0)
    draws: list[Callable[[int], Any]] = [
        lambda size: rng.integers(0, codebook_size, size),
        lambda size: zipf(codebook_size, np.random.default_rng(0), size),
        lambda size: rng.integers(0, 2, size) * (codebook_size - 1),
    ]
    receipts = [
        put_shard(store, f"s{shard}", _clips(4 * shard, draw, grid, codebook_size), codebook_size)
        for shard, (draw, grid) in enumerate(zip(draws, _GRIDS, strict=True))
    ]
    put_shard(store, "orphan", _clips(12, draws[0], (16, 16), codebook_size), codebook_size)
    commit(store, 0, *receipts[:2])
    commit(store, 1, receipts[2])


def _clips(
    first_row: int, draw: Callable[[int], Any], grid: tuple[int, int], codebook_size: int
) -> list[EncodedClip]:
    clips = []
    for row in range(first_row, first_row + 4):
        clip = encoded_clip(row, [17, 17, 9], grid, codebook_size)
        codes = [draw(one.size).reshape(one.shape).astype(one.dtype) for one in clip.codes]
        clips.append(replace(clip, codes=tuple(codes)))
    return clips


def encoding_of(file: Any) -> str:
    """Return which of ``ENCODINGS`` the codes of a Parquet file have."""
    group = file.metadata.row_group(0)
    columns = [group.column(index) for index in range(group.num_columns)]
    (codes,) = (one for one in columns if one.path_in_schema.startswith("codes."))
    return "BYTE_STREAM_SPLIT" if "BYTE_STREAM_SPLIT" in codes.encodings else "dictionary"
