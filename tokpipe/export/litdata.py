"""Chunks and ``index.json`` for litdata's ``StreamingDataset``.

Samples are dicts with ``clip_id``, ``codes`` (t, h, w) and ``json``, a text that describes the
clip. The files are byte for byte what its ``BinaryWriter`` writes (0.2.76, in a form unchanged
since the first version: github.com/Lightning-AI/litData, ``streaming/writer.py``), without
requiring the library.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokpipe.export import packed
from tokpipe.reader import Output

_FIELDS = {"clip_id": "str", "codes": "numpy", "json": "str"}
_TYPES: dict[int, np.dtype[Any]] = {5: np.dtype("<u2"), 6: np.dtype("<u4")}
"""Array types by litdata's number for them."""
_NUMBERS = {dtype: number for number, dtype in _TYPES.items()}
_LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}


def write(output: Output, folder: Path) -> None:
    """Write all clips, in the order of the manifest. Holds two shards and a chunk in memory."""
    files = packed.files_of(packed.samples_of(output, _array_head), b"", packed.FILE_BYTES)
    chunks = []
    for number, (size, data) in enumerate(files):
        name = f"chunk-0-{number}.bin"
        (folder / name).write_bytes(data)
        chunks.append({"chunk_bytes": len(data), "chunk_size": size, "dim": None, "filename": name})
    context = json.dumps(list(_FIELDS))
    spec = {"type": "builtins.dict", "context": context, "children_spec": [_LEAF] * len(_FIELDS)}
    config = {
        "chunk_bytes": packed.FILE_BYTES,
        "chunk_size": None,
        "compression": None,
        "data_format": list(_FIELDS.values()),
        "data_spec": json.dumps([1, spec]),
        "encryption": None,
        "item_loader": "PyTreeLoader",
    }
    index = {"chunks": chunks, "config": config}
    (folder / "index.json").write_text(json.dumps(index, sort_keys=True))


def count(folder: Path) -> tuple[int, int]:
    """Return (clips, codes) by reading every chunk that the index lists."""
    chunks = json.loads((folder / "index.json").read_text())["chunks"]
    num_codes = 0
    for chunk in chunks:
        listed = {"num_bytes": chunk["chunk_bytes"], "num_samples": chunk["chunk_size"]}
        num_codes += packed.count_codes(folder / chunk["filename"], _size_of, **listed)
    return sum(chunk["chunk_size"] for chunk in chunks), num_codes


def _array_head(codes: NDArray[Any]) -> bytes:
    return np.array([_NUMBERS[codes.dtype], codes.ndim, *codes.shape], "<u4").tobytes()


def _size_of(array: bytes) -> int:
    number, ndim = np.frombuffer(array, "<u4", 2).tolist()
    size = int(np.frombuffer(array, "<u4", ndim, 8).prod(dtype=np.int64))
    if number not in _TYPES or len(array) != 8 + 4 * ndim + size * _TYPES[number].itemsize:
        raise ValueError("an array does not have the size of its shape")
    return size
