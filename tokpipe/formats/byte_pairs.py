"""Stores skewed codes near their entropy, in a form that every Parquet reader knows.

Parquet's dictionary pages map indices to values, and zstd counts bytes. With indices of exactly 16
bits, which are two bytes each, zstd's Huffman code has one length per byte. So a code's index is
chosen as the pair of bytes whose lengths together are nearest to the information of the code:
frequent codes get pairs of frequent bytes. Of independent codes with a Zipf distribution this takes
1.01 times their entropy; the byte planes of the codes themselves, or indices of as few bits as
possible, take 1.25 times as much.

pyarrow numbers a dictionary in the order in which values appear. So it writes the codes plain
here, and their pages are replaced.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokpipe.formats.thrift_compact import (
    I32,
    I64,
    LIST,
    STRUCT,
    Struct,
    read_struct,
    varint,
    write_struct,
)

MOST_PAIRS = 2**16
_FEWEST_ENTRIES = 2**15 + 1
"""A dictionary of fewer entries has indices of fewer bits."""

_STEPS = 12
"""In each, bytes are counted anew for the pairs that the counts before led to."""

_LEVELS = (1, 3)
"""Of zstd, tried both: 3 finds more repeats, and where there are none takes chance for repeats, so
that it needs 10.3 bits where 1 needs 9.7 (Zipf, K = 8,192)."""

_MAGIC = b"PAR1"
_ZSTD = 6
_PLAIN, _RLE, _RLE_DICTIONARY = 0, 3, 8
_DATA_PAGE, _DICTIONARY_PAGE = 0, 2


@dataclass(frozen=True, slots=True)
class PairDictionary:
    """Which index stands for which value."""

    values: NDArray[np.uint32]
    """By index; 0 where an index stands for nothing."""
    indices: NDArray[np.uint16]
    """By value; 0 for values that have no index."""


def pair_dictionary(counts: NDArray[np.int64]) -> PairDictionary:
    """Choose indices for values of which value ``i`` occurs ``counts[i]`` times.

    At least one and at most ``MOST_PAIRS`` of the values may occur.
    """
    present = np.flatnonzero(counts)
    by_count = present[np.argsort(-counts[present], kind="stable")]
    weights = counts[by_count].astype(np.float64)
    # With half of the high bytes the dictionary is half as long.
    num_high = 128 if len(present) <= 2**15 else 256
    frequencies: NDArray[np.float64] = 1 / np.arange(1.0, 257.0)
    for _ in range(_STEPS):
        bits = -np.log2(frequencies / frequencies.sum())
        order = np.argsort((bits[:num_high, None] + bits[None, :]).ravel(), kind="stable")
        chosen = order[: len(by_count)]
        frequencies = np.full(256, weights.sum() * 1e-6)  # no byte is impossible
        frequencies += np.bincount(chosen >> 8, weights, 256)
        frequencies += np.bincount(chosen & 255, weights, 256)
    values = np.zeros(max(_FEWEST_ENTRIES, int(chosen.max()) + 1), np.uint32)
    values[chosen] = by_count
    indices = np.zeros(len(counts), np.uint16)
    indices[by_count] = chosen
    return PairDictionary(values, indices)


def with_byte_pairs(data: bytes, column: str, dictionary: PairDictionary) -> bytes:
    """Return a Parquet file in which a column's pages are encoded by ``dictionary``.

    Args:
        data: the file. The column holds 32-bit integers that are always there, in lists; it is
            written plain, uncompressed, without statistics, in pages of version 1.
        column: its path, with dots.
        dictionary: has an index for each of the column's values.
    """
    file = memoryview(data)
    (footer_bytes,) = struct.unpack("<I", file[-8:-4])
    footer, _ = read_struct(file[-8 - footer_bytes : -8])
    dictionary_page = _dictionary_page(dictionary)
    out = bytearray(_MAGIC)
    chunks: list[tuple[Struct, int]] = []
    """Each column chunk, and by how much it moved."""
    pages_of: dict[int, list[tuple[int, int]]] = {}
    """Offset and size of the new pages, by position among chunks."""
    for group in _list(footer, 4):
        start = len(out)
        for chunk in _list(group, 1):
            meta = _get(chunk, 3)
            old_start = _get(meta, 11) if 11 in meta else _get(meta, 9)
            old = file[old_start : old_start + _get(meta, 7)]
            chunks.append((chunk, len(out) - old_start))
            if ".".join(part.decode() for part in _list(meta, 3)) == column:
                pages = [_data_page(*page, dictionary) for page in _pages_in(old)]
                starts = np.cumsum([len(out) + len(dictionary_page.data), *map(len, pages)])
                pages_of[len(chunks) - 1] = [
                    (int(at), len(page)) for at, page in zip(starts[:-1], pages, strict=True)
                ]
                _describe(meta, len(out), dictionary_page, pages)
                out += b"".join([dictionary_page.data, *(page.data for page in pages)])
            else:
                for field in (9, 10, 11):
                    _move(meta, field, len(out) - old_start)
                out += old
            _move(chunk, 2, chunks[-1][1])
        metas = [_get(chunk, 3) for chunk in _list(group, 1)]
        group[2] = (I64, sum(_get(meta, 6) for meta in metas))
        if 5 in group:
            group[5] = (I64, start)
        if 6 in group:
            group[6] = (I64, sum(_get(meta, 7) for meta in metas))
    _move_indexes(out, file, chunks, pages_of)
    described = write_struct(footer)
    return bytes(out + described + struct.pack("<I", len(described)) + _MAGIC)


@dataclass(frozen=True, slots=True)
class _Page:
    data: bytes
    """Header and content."""
    uncompressed_size: int
    """Of both."""

    def __len__(self) -> int:
        return len(self.data)


def _pages_in(chunk: memoryview) -> list[tuple[Struct, memoryview]]:
    """Header and content of each page of a plain column."""
    found, at = [], 0
    while at < len(chunk):
        header, start = read_struct(chunk, at)
        at = start + _get(header, 3)
        found.append((header, chunk[start:at]))
    return found


def _data_page(header: Struct, content: memoryview, dictionary: PairDictionary) -> _Page:
    own = _get(header, 5)
    num_values = _get(own, 1)
    # In front of the values stand repetition and definition levels, each behind its length.
    at = 0
    for _ in range(2):
        at += 4 + struct.unpack_from("<I", content, at)[0]
    indices = dictionary.indices[np.frombuffer(content, "<u4", num_values, at)]
    padding = -num_values % 8
    values = (
        bytes([16])  # bits of an index
        + varint((num_values + padding) // 8 << 1 | 1)  # one run of so many eights, as they are
        + indices.astype("<u2").tobytes()
        + bytes(2 * padding)
    )
    own[2] = (I32, _RLE_DICTIONARY)
    return _page(_DATA_PAGE, 5, own, bytes(content[:at]) + values)


def _dictionary_page(dictionary: PairDictionary) -> _Page:
    own: Struct = {1: (I32, len(dictionary.values)), 2: (I32, _PLAIN)}
    content = dictionary.values.astype("<u4").tobytes()
    return _page(_DICTIONARY_PAGE, 7, own, content)


def _page(kind: int, field: int, own: Struct, content: bytes) -> _Page:
    packed = min(
        (pa.Codec("zstd", level).compress(content, asbytes=True) for level in _LEVELS), key=len
    )
    (crc,) = struct.unpack("<i", struct.pack("<I", zlib.crc32(packed)))
    header = write_struct(
        {
            1: (I32, kind),
            2: (I32, len(content)),
            3: (I32, len(packed)),
            4: (I32, crc),
            field: (STRUCT, own),
        }
    )
    return _Page(header + packed, len(header) + len(content))


def _describe(meta: Struct, start: int, dictionary: _Page, pages: list[_Page]) -> None:
    """Say in a column's metadata how it is stored now."""
    meta[2] = (LIST, (I32, [_PLAIN, _RLE, _RLE_DICTIONARY]))
    meta[4] = (I32, _ZSTD)
    meta[6] = (I64, sum(page.uncompressed_size for page in [dictionary, *pages]))
    meta[7] = (I64, sum(map(len, [dictionary, *pages])))
    meta[9] = (I64, start + len(dictionary))
    meta[11] = (I64, start)
    counted = ((_DICTIONARY_PAGE, _PLAIN, 1), (_DATA_PAGE, _RLE_DICTIONARY, len(pages)))
    stats = [{i: (I32, value) for i, value in enumerate(one, 1)} for one in counted]
    meta[13] = (LIST, (STRUCT, stats))
    fields = sorted(meta.items())
    meta.clear()
    meta.update(fields)


def _move_indexes(
    out: bytearray,
    file: memoryview,
    chunks: list[tuple[Struct, int]],
    pages_of: dict[int, list[tuple[int, int]]],
) -> None:
    """Append the page indexes, with pages where they are now."""
    for chunk, _ in chunks:
        if 6 in chunk:
            start = _get(chunk, 6)
            chunk[6] = (I64, len(out))
            out += file[start : start + _get(chunk, 7)]
    for number, (chunk, moved) in enumerate(chunks):
        if 4 not in chunk:
            continue
        index, _ = read_struct(file, _get(chunk, 4))
        for i, location in enumerate(_list(index, 1)):
            if number in pages_of:
                location[1], location[2] = (
                    (I64, pages_of[number][i][0]),
                    (I32, pages_of[number][i][1]),
                )
            else:
                _move(location, 1, moved)
        data = write_struct(index)
        chunk[4], chunk[5] = (I64, len(out)), (I32, len(data))
        out += data


def _get(value: Struct, field: int) -> Any:
    return value[field][1]


def _list(value: Struct, field: int) -> list[Any]:
    items: list[Any] = value[field][1][1]
    return items


def _move(value: Struct, field: int, by: int) -> None:
    if field in value and value[field][1]:
        value[field] = (value[field][0], value[field][1] + by)
