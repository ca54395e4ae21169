"""Shards as MosaicML's ``StreamingDataset`` reads them, with ``index.json``.

Samples are dicts with ``clip_id``, ``codes`` (t, h, w) and ``json``, which describes the clip.
Written without the library, which wants other versions of numpy and transformers than a job, byte
for byte as its ``MDSWriter`` does (0.13), whose format is version 2: github.com/mosaicml/streaming,
``base/format/mds/``. The index has a SHA-256 of each shard, which the library compares if it is
given ``validate_hash="sha256"``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tokpipe.export.counts import Counts
from tokpipe.export.described import described
from tokpipe.export.packed import FILE_BYTES, Broken, counts_of, fields_in, files_of, sample_of
from tokpipe.reader import Output

_SIDES: list[np.dtype[Any]] = [np.dtype("<u1"), np.dtype("<u2"), np.dtype("<u4")]
"""Types that a shape is written in: the smallest that holds it."""


def write(output: Output, folder: Path) -> None:
    """Write all clips, in the order of the manifest. Holds two shards and one of its own."""
    config = _config(output.tokenizer.code_dtype)
    head = _head(config)
    shards = []
    for number, (size, data) in enumerate(files_of(_samples(output), head, FILE_BYTES)):
        name = f"shard.{number:05}.mds"
        (folder / name).write_bytes(data)
        hashes = {"sha256": hashlib.sha256(data).hexdigest()}
        raw = {"basename": name, "bytes": len(data), "hashes": hashes}
        shards.append({**config, "raw_data": raw, "samples": size, "zip_data": None})
    index = {"shards": shards, "version": 2}
    (folder / "index.json").write_text(json.dumps(index, sort_keys=True))


def count(folder: Path) -> Counts:
    """Count by reading every shard that the index names."""
    return counts_of(_listed(folder))


def _listed(folder: Path) -> Iterator[list[int]]:
    """Yield the codes of each sample of each shard."""
    for shard in json.loads((folder / "index.json").read_text())["shards"]:
        raw = shard.pop("raw_data")
        wanted = raw["bytes"], raw["hashes"]["sha256"], shard.pop("samples")
        del shard["zip_data"]
        data = (folder / raw["basename"]).read_bytes()
        dtype = np.dtype(shard["column_encodings"][1].removeprefix("ndarray:"))
        samples = [
            _size_of(codes, dtype)
            for _, codes, _ in fields_in(data, _head(shard), len(shard["column_names"]))
        ]
        if (len(data), hashlib.sha256(data).hexdigest(), len(samples)) != wanted:
            raise Broken("a shard is not what the index says")
        yield samples


def _samples(output: Output) -> Iterator[bytes]:
    for clip in output.clips():
        codes = clip.codes
        longest = max(codes.shape)
        kind = next(kind for kind, sides in enumerate(_SIDES) if longest <= np.iinfo(sides).max)
        yield sample_of(
            clip.clip_id.encode(),
            bytes([codes.ndim << 2 | kind])
            + np.array(codes.shape, _SIDES[kind]).tobytes()
            + codes.astype(codes.dtype.newbyteorder("<"), copy=False).tobytes(),
            described(clip, output).encode(),
        )


def _size_of(array: bytes, dtype: np.dtype[Any]) -> int:
    """Elements of an array, which has as many as its shape says."""
    num_sides, kind = array[0] >> 2, array[0] & 3
    start = 1 + num_sides * _SIDES[kind].itemsize
    size = int(np.frombuffer(array[1:start], _SIDES[kind]).prod(dtype=np.int64))
    if len(array) != start + size * dtype.itemsize:
        raise Broken("an array has not the shape that it should")
    return size


def _config(code_dtype: str) -> dict[str, Any]:
    return {
        "column_encodings": ["str", f"ndarray:{code_dtype}", "json"],
        "column_names": ["clip_id", "codes", "json"],
        "column_sizes": [None, None, None],
        "compression": None,
        "format": "mds",
        "hashes": ["sha256"],
        "size_limit": FILE_BYTES,
        "version": 2,
    }


def _head(config: dict[str, Any]) -> bytes:
    return json.dumps(config, sort_keys=True).encode()
