"""Shards and ``index.json`` for MosaicML's ``StreamingDataset``.

Samples are dicts with ``clip_id``, ``codes`` (t, h, w) and ``json``, which describes the clip. The
files are byte for byte what its ``MDSWriter`` writes (0.13, format version 2:
github.com/mosaicml/streaming, ``base/format/mds/``), without requiring the library, which needs
other versions of numpy and transformers. The index has a SHA-256 of each shard, which the library
checks with ``validate_hash="sha256"``.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokpipe.export import packed
from tokpipe.reader import Clip, Output


def write(clips: Iterable[Clip], output: Output, folder: Path) -> None:
    """Write clips in order. Holds two shards and one of MDS in memory."""
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
    samples = packed.samples_of(clips, output, _array_head)
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


def _array_head(codes: NDArray[Any]) -> bytes:
    sides = np.min_scalar_type(max(codes.shape)).newbyteorder("<")
    kind = sides.itemsize.bit_length() - 1
    return bytes([codes.ndim << 2 | kind]) + np.array(codes.shape, sides).tobytes()
