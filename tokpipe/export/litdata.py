"""Chunks as litdata's ``StreamingDataset`` reads them, with ``index.json``.

Samples are dicts with ``clip_id``, ``codes`` (t, h, w) and ``json``, a text that describes the
clip. Written without the library, which is heavy, byte for byte as its ``BinaryWriter`` does
(0.2.76), in the form that it has had from its start: github.com/Lightning-AI/litData,
``streaming/writer.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tokpipe.export.counts import Counts
from tokpipe.export.described import described
from tokpipe.export.packed import FILE_BYTES, Broken, counts_of, fields_in, files_of, sample_of
from tokpipe.reader import Output

_FIELDS = {"clip_id": "str", "codes": "numpy", "json": "str"}
_TYPES: dict[int, np.dtype[Any]] = {5: np.dtype("<u2"), 6: np.dtype("<u4")}
"""Of arrays, by litdata's number for them."""
_NUMBERS = {dtype: number for number, dtype in _TYPES.items()}
_LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}


def write(output: Output, folder: Path) -> None:
    """Write all clips, in the order of the manifest. Holds two shards and a chunk."""
    chunks = []
    for number, (size, data) in enumerate(files_of(_samples(output), b"", FILE_BYTES)):
        name = f"chunk-0-{number}.bin"
        (folder / name).write_bytes(data)
        chunks.append({"chunk_bytes": len(data), "chunk_size": size, "dim": None, "filename": name})
    index = {"chunks": chunks, "config": _config()}
    (folder / "index.json").write_text(json.dumps(index, sort_keys=True))


def count(folder: Path) -> Counts:
    """Count by reading every chunk that the index names."""
    return counts_of(_listed(folder))


def _listed(folder: Path) -> Iterator[list[int]]:
    """Yield the codes of each sample of each chunk."""
    for chunk in json.loads((folder / "index.json").read_text())["chunks"]:
        data = (folder / chunk["filename"]).read_bytes()
        samples = [_size_of(codes) for _, codes, _ in fields_in(data, b"", len(_FIELDS))]
        if (len(data), len(samples)) != (chunk["chunk_bytes"], chunk["chunk_size"]):
            raise Broken("a chunk is not as large as the index says")
        yield samples


def _samples(output: Output) -> Iterator[bytes]:
    for clip in output.clips():
        codes = clip.codes.astype(clip.codes.dtype.newbyteorder("<"), copy=False)
        head = np.array([_NUMBERS[codes.dtype], codes.ndim, *codes.shape], "<u4")
        yield sample_of(
            clip.clip_id.encode(),
            head.tobytes() + codes.tobytes(),
            described(clip, output).encode(),
        )


def _size_of(array: bytes) -> int:
    """Elements of an array, which has as many as its shape says."""
    number, num_sides = np.frombuffer(array[:8], "<u4").tolist()
    shape = np.frombuffer(array[8 : 8 + 4 * num_sides], "<u4")
    size = int(shape.prod(dtype=np.int64))
    if number not in _TYPES or len(array) != 8 + 4 * num_sides + size * _TYPES[number].itemsize:
        raise Broken("an array has not the shape that it should")
    return size


def _config() -> dict[str, Any]:
    context = json.dumps(list(_FIELDS))
    spec = {"type": "builtins.dict", "context": context, "children_spec": [_LEAF] * len(_FIELDS)}
    return {
        "chunk_bytes": FILE_BYTES,
        "chunk_size": None,
        "compression": None,
        "data_format": list(_FIELDS.values()),
        "data_spec": json.dumps([1, spec]),
        "encryption": None,
        "item_loader": "PyTreeLoader",
    }
