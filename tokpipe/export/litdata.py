"""Chunks and ``index.json`` for litdata's ``StreamingDataset``.

Samples are dicts with ``clip_id``, ``codes`` (t, h, w) and ``json``, a text that describes the
clip. The files are byte for byte what its ``BinaryWriter`` writes (0.2.76, in a form unchanged
since the first version: github.com/Lightning-AI/litData, ``streaming/writer.py``), without
requiring the library.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokpipe.export import packed
from tokpipe.reader import Clip, Output

_FIELDS = {"clip_id": "str", "codes": "numpy", "json": "str"}
_TYPES = {np.dtype("<u2"): 5, np.dtype("<u4"): 6}  # Litdata's numbers for array types
_LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}


def write(clips: Iterable[Clip], output: Output, folder: Path) -> None:
    """Write clips in order. Holds two shards and a chunk in memory."""
    samples = packed.samples_of(clips, output, _array_head)
    files = packed.files_of(samples, b"", packed.FILE_BYTES)
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


def _array_head(codes: NDArray[Any]) -> bytes:
    return np.array([_TYPES[codes.dtype], codes.ndim, *codes.shape], "<u4").tobytes()
