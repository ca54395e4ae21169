"""Files of samples that litdata and MDS both have, but for what stands between offsets and samples.

Each begins with how many samples it has, and where each begins and the last one ends, as uint32.
A sample is the sizes of its fields, as uint32, and their bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate, pairwise

import numpy as np

from tokpipe.export.counts import Counts

FILE_BYTES = 2**26
"""No file becomes larger, unless by one sample alone. What both libraries take by default."""

_WORD = np.dtype("<u4")


class Broken(Exception):
    """A file contradicts itself."""


def sample_of(*fields: bytes) -> bytes:
    """A sample of some fields."""
    return _words([len(field) for field in fields]) + b"".join(fields)


def files_of(samples: Iterable[bytes], head: bytes, max_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Yield how many samples each file has, and its bytes; ``head`` stands after the offsets."""
    held: list[bytes] = []
    size = empty = 2 * _WORD.itemsize + len(head)
    for sample in samples:
        more = _WORD.itemsize + len(sample)
        if held and size + more > max_bytes:
            yield len(held), _file_of(held, head)
            held, size = [], empty
        held.append(sample)
        size += more
    if held:
        yield len(held), _file_of(held, head)


def fields_in(data: bytes, head: bytes, num_fields: int) -> Iterator[list[bytes]]:
    """Yield the fields of each sample of a file.

    Raises:
        Broken: it was cut, or its sizes do not fit together.
    """
    (number,) = _read_words(data, 0, 1)
    offsets = _read_words(data, _WORD.itemsize, number + 1)
    begin = (2 + number) * _WORD.itemsize
    if offsets[0] != begin + len(head) or offsets[-1] != len(data):
        raise Broken("its samples are not where its offsets say")
    if data[begin : offsets[0]] != head:
        raise Broken("its head is not that of the index")
    for start, end in pairwise(offsets):
        sizes = _read_words(data, start, num_fields)
        starts = list(accumulate(sizes, initial=start + num_fields * _WORD.itemsize))
        if starts[-1] != end:
            raise Broken("the fields of a sample do not fill it")
        yield [data[at : at + size] for at, size in zip(starts, sizes, strict=False)]


def counts_of(files: Iterable[list[int]]) -> Counts:
    """Add up the codes of each sample of each file; fewer than no clips once one is ``Broken``."""
    num_clips = num_codes = 0
    try:
        for samples in files:
            num_clips += len(samples)
            num_codes += sum(samples)
    except Broken:
        return Counts(-1, num_codes)
    return Counts(num_clips, num_codes)


def _file_of(samples: list[bytes], head: bytes) -> bytes:
    first = (2 + len(samples)) * _WORD.itemsize + len(head)
    offsets = list(accumulate(map(len, samples), initial=first))
    return b"".join([_words([len(samples)]), _words(offsets), head, *samples])


def _words(numbers: list[int]) -> bytes:
    return np.array(numbers, _WORD).tobytes()


def _read_words(data: bytes, start: int, number: int) -> list[int]:
    end = start + number * _WORD.itemsize
    if end > len(data):
        raise Broken("it ends too early")
    found: list[int] = np.frombuffer(data[start:end], _WORD).tolist()
    return found
