"""Flat files to memory-map, for 1X's world model challenge and for Megatron-LM.

The layout of ``memmap`` is that of github.com/1x-technologies/1xgpt, ``data.py``: ``video.bin``
holds latent frames (num_images, h, w), ``segment_ids.bin`` one int32 for each, which counts clips,
and ``metadata.json`` their shape and type. ``clips.jsonl`` identifies the clip of each segment.
With a template, ``tokens.bin``, ``loss.bin`` and ``positions.bin`` replace ``video.bin``.

The layout of ``megatron`` is that of megatron-core's ``IndexedDataset`` (github.com/NVIDIA/
Megatron-LM, ``megatron/core/datasets/indexed_dataset.py``), with a document for each clip, which
``clips.jsonl`` identifies.
"""

import json
from array import array
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from tokpipe.errors import ConfigError
from tokpipe.export.samples import Sample, Source

_MEGATRON_TYPES = {"int32": 4, "int64": 5, "uint16": 8}


def write_memmap(source: Source, folder: Path) -> None:
    """Write clips in order. Holds two shards in memory."""
    unit = "token" if source.template else "image"
    grid: tuple[int, ...] | None = None
    total = 0
    with ExitStack() as stack:
        files = {
            name: stack.enter_context((folder / f"{name}.bin").open("wb"))
            for name in (*source.dtypes, "segment_ids")
        }
        lines = stack.enter_context((folder / "clips.jsonl").open("w"))
        for number, sample in enumerate(source):
            first = next(iter(sample.arrays.values()))
            length, sides = len(first), first.shape[1:]
            grid = grid or sides
            if sides != grid:
                found = f"clip {sample.clip_id} has a grid of {sides}, earlier clips have {grid}"
                do = "and video.bin is one array. Export to another format"
                raise ConfigError(f"export: {found}, {do}")
            ids = np.full(length, number, "<i4")
            for name, values in {**sample.arrays, "segment_ids": ids}.items():
                files[name].write(values.tobytes())
            lines.write(_line(number, sample, unit, total, length))
            total += length
    if source.template is None:
        (folder / "codes.bin").rename(folder / "video.bin")
        shape = dict(zip("hwc", grid or (0, 0), strict=False))
        square = {"s": shape["h"]} if shape["h"] == shape["w"] else {}
        source.describe(folder, num_images=total, **square, **shape)


def _line(number: int, sample: Sample, unit: str, first: int, length: int) -> str:
    line = {"segment_id": number, "clip_id": sample.clip_id, "source_uri": sample.source_uri}
    return json.dumps({**line, f"first_{unit}": first, f"num_{unit}s": length}) + "\n"


def write_megatron(source: Source, folder: Path) -> None:
    """Write clips in order. Holds 4 bytes of each clip until the end, and then 20."""
    dtype, sizes = source.dtypes["tokens"], array("i")
    with (folder / "tokens.bin").open("wb") as tokens, (folder / "clips.jsonl").open("w") as lines:
        for number, sample in enumerate(source):
            first, length = tokens.tell() // dtype.itemsize, len(sample.arrays["tokens"])
            lines.write(_line(number, sample, "token", first, length))
            tokens.write(sample.arrays["tokens"].data)
            sizes.append(length)
    lengths = np.frombuffer(sizes, np.int32)
    starts = np.cumsum(lengths, dtype=np.int64)
    starts -= lengths
    starts *= dtype.itemsize
    with (folder / "tokens.idx").open("wb") as index:
        index.write(b"MMIDIDX\0\0" + np.uint64(1).tobytes() + bytes([_MEGATRON_TYPES[dtype.name]]))
        index.write(np.array([len(lengths), len(lengths) + 1]).tobytes())
        for part in (lengths, starts, np.arange(len(lengths) + 1)):
            index.write(part.data)
