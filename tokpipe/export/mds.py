"""Shards and ``index.json`` for MosaicML's ``StreamingDataset``.

Samples are dicts with ``clip_id``, ``codes`` (t, h, w) and ``json``, which describes the clip. The
files are byte for byte what its ``MDSWriter`` writes (0.13, format version 2:
github.com/mosaicml/streaming, ``base/format/mds/``), without requiring the library, which needs
other versions of numpy and transformers. The index has a SHA-256 of each shard, which the library
checks with ``validate_hash="sha256"``.
"""

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokpipe.export import packed
from tokpipe.reader import Output

_SIDES: list[np.dtype[Any]] = [np.dtype("<u1"), np.dtype("<u2"), np.dtype("<u4")]
"""Types of an array's shape: the smallest that holds it."""


def write(output: Output, folder: Path) -> None:
    """Write all clips, in the order of the manifest. Holds two shards and one of MDS in memory."""
    config = {
        "column_encodings": ["str", f"ndarray:{output.tokenizer.code_dtype}", "json"],
        "column_names": ["clip_id", "codes", "json"],
        "column_sizes": [None, None, None],
        "compression": None,
        "format": "mds",
        "hashes": ["sha256"],
        "size_limit": packed.FILE_BYTES,
        "version": 2,
    }
    shards = []
    samples = packed.samples_of(output, _array_head)
    head = json.dumps(config, sort_keys=True).encode()
    files = packed.files_of(samples, head, packed.FILE_BYTES)
    for number, (size, data) in enumerate(files):
        name = f"shard.{number:05}.mds"
        (folder / name).write_bytes(data)
        hashes = {"sha256": hashlib.sha256(data).hexdigest()}
        raw = {"basename": name, "bytes": len(data), "hashes": hashes}
        shards.append({**config, "raw_data": raw, "samples": size, "zip_data": None})
    index = {"shards": shards, "version": 2}
    (folder / "index.json").write_text(json.dumps(index, sort_keys=True))


def count(folder: Path) -> tuple[int, int]:
    """Return (clips, codes) by reading every shard that the index lists."""
    num_clips = num_codes = 0
    for shard in json.loads((folder / "index.json").read_text())["shards"]:
        raw, num_samples = shard["raw_data"], shard["samples"]
        dtype = np.dtype(shard["column_encodings"][1].removeprefix("ndarray:"))
        num_clips += num_samples
        num_codes += packed.count_codes(
            folder / raw["basename"],
            partial(_size_of, dtype=dtype),
            num_bytes=raw["bytes"],
            num_samples=num_samples,
            sha256=raw["hashes"]["sha256"],
        )
    return num_clips, num_codes


def _array_head(codes: NDArray[Any]) -> bytes:
    longest = max(codes.shape)
    kind = next(kind for kind, sides in enumerate(_SIDES) if longest <= np.iinfo(sides).max)
    return bytes([codes.ndim << 2 | kind]) + np.array(codes.shape, _SIDES[kind]).tobytes()


def _size_of(array: bytes, dtype: np.dtype[Any]) -> int:
    ndim, sides = array[0] >> 2, _SIDES[array[0] & 3]
    size = int(np.frombuffer(array, sides, ndim, 1).prod(dtype=np.int64))
    if len(array) != 1 + ndim * sides.itemsize + size * dtype.itemsize:
        raise ValueError("an array does not have the size of its shape")
    return size
