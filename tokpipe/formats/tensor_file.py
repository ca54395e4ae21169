"""safetensors files, read and written without torch: which tensors there are, and their bytes.

A file is the size of its header (8 bytes, little-endian), the header (JSON: dtype, shape and byte
offsets by name), and the data. Source: https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokpipe.errors import ConfigError

MAX_HEADER_BYTES = 100_000_000
"""What the reference implementation takes at most."""

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a file."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return ITEM_BYTES[self.dtype] * math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class TensorFile:
    """The tensors of a safetensors file that is held in memory."""

    tensors: Mapping[str, tuple[TensorInfo, memoryview]]

    @classmethod
    def parse(cls, uri: str, data: bytes) -> TensorFile:
        """Find the tensors in ``data``, which is not copied.

        Raises:
            ConfigError: it is no whole safetensors file.
        """
        try:
            return cls(_parsed(data))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(
                f"{uri}: is no whole safetensors file ({error}). Without weights there are no "
                "codes. Make other checkpoints into one by `tokpipe convert`, and copy this one "
                "again if it was cut short"
            ) from error

    def without(self, prefixes: tuple[str, ...]) -> TensorFile:
        """The tensors whose names begin with none of ``prefixes``."""
        return TensorFile({k: v for k, v in self.tensors.items() if not k.startswith(prefixes)})

    def to_bytes(self) -> bytes:
        """A safetensors file of these tensors."""
        return b"".join(_pieces({name: info for name, (info, _) in self.tensors.items()}, self._of))

    def _of(self, name: str) -> Iterable[memoryview]:
        return (self.tensors[name][1],)

    def sha256(self) -> str:
        """Hash of names, types, shapes and values, in hex; the order in the file is not part."""
        names = sorted(self.tensors)
        listed = [
            [name, info.dtype, info.shape] for name in names for info, _ in [self.tensors[name]]
        ]
        digest = hashlib.sha256(json.dumps(listed).encode())
        for name in names:
            digest.update(self.tensors[name][1])
        return digest.hexdigest()


def write_tensor_file(
    path: Path, infos: Mapping[str, TensorInfo], data_of: Callable[[str], Iterable[Any]]
) -> None:
    """Write a safetensors file, one piece of one tensor at a time.

    ``data_of`` gives the bytes of a tensor, little-endian and contiguous, in pieces.

    Raises:
        ValueError: the pieces of a tensor are not as many bytes as its type and shape say.
    """
    with path.open("wb") as file:
        for piece in _pieces(infos, data_of):
            file.write(piece)


def _pieces(
    infos: Mapping[str, TensorInfo], data_of: Callable[[str], Iterable[Any]]
) -> Iterator[Any]:
    header: dict[str, Any] = {}
    end = 0
    # By size of item, then by name, as the reference does: every tensor is then aligned.
    names = sorted(infos, key=lambda name: (-ITEM_BYTES[infos[name].dtype], name))
    for name in names:
        info = infos[name]
        begin, end = end, end + info.size_bytes
        header[name] = {"dtype": info.dtype, "shape": info.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text))
    yield text
    for name in names:
        written = 0
        for piece in data_of(name):
            written += memoryview(piece).nbytes
            yield piece
        if written != infos[name].size_bytes:
            raise ValueError(f"{name} has {written} bytes, not {infos[name].size_bytes}")


def _parsed(data: bytes) -> dict[str, tuple[TensorInfo, memoryview]]:
    if len(data) < 8:
        raise ValueError(f"it has {len(data)} bytes, fewer than the size of a header")
    (size,) = struct.unpack_from("<Q", data)
    if size > min(MAX_HEADER_BYTES, len(data) - 8):
        raise ValueError(f"its header should have {size:,} bytes, and there are {len(data) - 8:,}")
    header = json.loads(data[8 : 8 + size])
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    header.pop("__metadata__", None)
    body = memoryview(data)[8 + size :]
    found: dict[str, tuple[TensorInfo, memoryview]] = {}
    for name, entry in header.items():
        shape = tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        numbers = (*shape, begin, end)
        if entry["dtype"] not in ITEM_BYTES or any(type(n) is not int or n < 0 for n in numbers):
            raise ValueError(f"{name} is of a type or shape that this does not know: {entry}")
        info = TensorInfo(entry["dtype"], shape)
        if end > len(body) or end - begin != info.size_bytes:
            raise ValueError(
                f"{name} should be bytes {begin:,} to {end:,} of {len(body):,}, for a shape of "
                f"{info.size_bytes:,} bytes"
            )
        found[name] = info, body[begin:end]
    return found
