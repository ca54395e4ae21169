"""Files that hold many samples each: WebDataset's tars, litdata's chunks and MosaicML's shards.

A tar holds ``<clip id>.npy`` or ``<clip id>.tokens.npy`` and so on, then ``<clip id>.json``.

The others, for litdata's and MosaicML's ``StreamingDataset``, share a form. A file is the number
of its samples and where each begins and the last one ends, as uint32, a head, and the samples. A
sample is the sizes of its fields, as uint32, and their bytes, by name: ``clip_id``, the arrays, and
``json``, a description. They are byte for byte what litdata's ``BinaryWriter`` writes (0.2.76,
unchanged since the first version: github.com/Lightning-AI/litData, ``streaming/writer.py``) and
``MDSWriter`` (0.13, format version 2: github.com/mosaicml/streaming, ``base/format/mds/``). The
index of MDS has a SHA-256 of each shard, for ``validate_hash="sha256"``.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokpipe.export.samples import Sample, Source

FILE_BYTES = 2**26  # The default of both libraries. A file is larger only if a single sample is
TAR_BYTES = 2**28  # A tar is closed at about this size

_WORD = np.dtype("<u4")
_LITDATA_TYPES = [np.dtype(f"<{kind}{n}") for kind in "iu" for n in (1, 2, 4, 8)]  # By number
_LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}


def write_webdataset(source: Source, folder: Path) -> None:
    """Write clips to ``000000.tar`` and so on, in order. Holds two shards in memory."""
    rest = iter(source)
    number, sample = 0, next(rest, None)
    while sample is not None:
        with tarfile.open(folder / f"{number:06}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            size = 0
            while sample is not None and size < TAR_BYTES:
                for ending, data in _members(sample):
                    header = tarfile.TarInfo(f"{sample.clip_id}.{ending}")
                    header.size = len(data)
                    tar.addfile(header, io.BytesIO(data))
                    size += len(data)
                sample = next(rest, None)
        number += 1


def _members(sample: Sample) -> Iterator[tuple[str, bytes]]:
    for name, values in sample.arrays.items():
        array = io.BytesIO()
        np.save(array, values)
        yield "npy" if name == "codes" else f"{name}.npy", array.getvalue()
    yield "json", sample.sidecar.encode()


def write_litdata(source: Source, folder: Path) -> None:
    """Write chunks and ``index.json``. Holds two shards and a chunk in memory."""
    formats = {"clip_id": "str", "json": "str"}
    for name, dtype in source.dtypes.items():
        flat = f"no_header_numpy:{_LITDATA_TYPES.index(dtype)}"
        formats[name] = flat if name in ("tokens", "loss") else "numpy"
    chunks = []
    for number, (size, data) in enumerate(files_of(source, _litdata_bytes)):
        name = f"chunk-0-{number}.bin"
        (folder / name).write_bytes(data)
        chunks.append({"chunk_bytes": len(data), "chunk_size": size, "dim": None, "filename": name})
    context = json.dumps(sorted(formats))
    spec = {"type": "builtins.dict", "context": context, "children_spec": [_LEAF] * len(formats)}
    config = {
        "chunk_bytes": FILE_BYTES,
        "chunk_size": None,
        "compression": None,
        "data_format": [formats[name] for name in sorted(formats)],
        "data_spec": json.dumps([1, spec]),
        "encryption": None,
        "item_loader": "PyTreeLoader",
    }
    index = {"chunks": chunks, "config": config}
    (folder / "index.json").write_text(json.dumps(index, sort_keys=True))


def _litdata_bytes(array: NDArray[Any]) -> bytes:
    head = [_LITDATA_TYPES.index(array.dtype), array.ndim, *array.shape] if array.ndim > 1 else []
    return _words(head) + array.tobytes()


def write_mds(source: Source, folder: Path) -> None:
    """Write shards and ``index.json``. Holds two shards and one of MDS in memory."""
    encodings = {"clip_id": "str", "json": "json"}
    encodings |= {name: f"ndarray:{dtype.name}" for name, dtype in source.dtypes.items()}
    config = {
        "column_encodings": [encodings[name] for name in sorted(encodings)],
        "column_names": sorted(encodings),
        "column_sizes": [None] * len(encodings),
        "compression": None,
        "format": "mds",
        "hashes": ["sha256"],
        "size_limit": FILE_BYTES,
        "version": 2,
    }
    shards = []
    head = json.dumps(config, sort_keys=True).encode()
    for number, (size, data) in enumerate(files_of(source, _mds_bytes, head)):
        name = f"shard.{number:05}.mds"
        (folder / name).write_bytes(data)
        hashes = {"sha256": hashlib.sha256(data).hexdigest()}
        raw = {"basename": name, "bytes": len(data), "hashes": hashes}
        shards.append({**config, "raw_data": raw, "samples": size, "zip_data": None})
    index = {"shards": shards, "version": 2}
    (folder / "index.json").write_text(json.dumps(index, sort_keys=True))


def _mds_bytes(array: NDArray[Any]) -> bytes:
    sides = np.min_scalar_type(max(array.shape)).newbyteorder("<")
    kind = sides.itemsize.bit_length() - 1
    head = bytes([array.ndim << 2 | kind]) + np.array(array.shape, sides).tobytes()
    return head + array.tobytes()


def files_of(
    samples: Iterable[Sample], array_bytes: Callable[[NDArray[Any]], bytes], head: bytes = b""
) -> Iterator[tuple[int, bytes]]:
    """Yield the number of samples and the bytes of each file."""
    held: list[bytes] = []
    size = empty = 2 * _WORD.itemsize + len(head)
    for sample in samples:
        fields = {"clip_id": sample.clip_id.encode(), "json": sample.sidecar.encode()}
        fields |= {name: array_bytes(array) for name, array in sample.arrays.items()}
        ordered = [fields[name] for name in sorted(fields)]
        data = _words(map(len, ordered)) + b"".join(ordered)
        more = _WORD.itemsize + len(data)
        if held and size + more > FILE_BYTES:
            yield len(held), _file_of(held, head)
            held, size = [], empty
        held.append(data)
        size += more
    if held:
        yield len(held), _file_of(held, head)


def _file_of(samples: list[bytes], head: bytes) -> bytes:
    first = (2 + len(samples)) * _WORD.itemsize + len(head)
    offsets = accumulate(map(len, samples), initial=first)
    return b"".join([_words([len(samples), *offsets]), head, *samples])


def _words(numbers: Iterable[int]) -> bytes:
    return np.array(list(numbers), _WORD).tobytes()
