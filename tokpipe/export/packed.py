"""Files of samples, in the form that litdata and MDS share.

A file starts with its number of samples and the offsets at which each begins and the last one ends,
as uint32. A head follows, then the samples. A sample is the sizes of its fields, as uint32, and
their bytes.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tokpipe.errors import CorruptOutput
from tokpipe.export.sidecar import sidecar
from tokpipe.reader import Output

FILE_BYTES = 2**26
"""The default of both libraries. A file is larger only if a single sample is."""

_WORD = np.dtype("<u4")


def samples_of(output: Output, array_head: Callable[[Any], bytes]) -> Iterator[bytes]:
    """Yield each clip as a sample: id, codes after ``array_head(codes)``, and sidecar."""
    for clip in output.clips():
        codes = clip.codes
        array = array_head(codes) + codes.tobytes()
        fields = clip.clip_id.encode(), array, sidecar(clip, output).encode()
        yield _words(map(len, fields)) + b"".join(fields)


def files_of(samples: Iterable[bytes], head: bytes, max_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Yield the number of samples and the bytes of each file."""
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


def count_codes(
    path: Path,
    size_of: Callable[[bytes], int],
    *,
    num_bytes: int,
    num_samples: int,
    sha256: str | None = None,
) -> int:
    """Return the number of codes in a file. ``size_of`` returns that of a field of codes.

    Raises:
        CorruptOutput: the file contradicts itself or the index, which gives the other arguments.
    """
    data = path.read_bytes()
    try:
        sizes = [size_of(codes) for _, codes, _ in _samples_in(data)]
        if (len(data), len(sizes)) != (num_bytes, num_samples):
            raise ValueError(f"it has {len(data)} bytes and {len(sizes)} samples, unlike the index")
        if sha256 not in (None, hashlib.sha256(data).hexdigest()):
            raise ValueError("its SHA-256 differs from the index")
    except (ValueError, IndexError) as error:
        raise CorruptOutput(
            f"export: {path} is damaged: {error}. A loader would read wrong codes. Check the disk, "
            "and export again"
        ) from error
    return sum(sizes)


def _samples_in(data: bytes) -> Iterator[list[bytes]]:
    """Yield the three fields of each sample of a file."""
    (number,) = _read_words(data, 0, 1)
    offsets = _read_words(data, _WORD.itemsize, number + 1)
    if offsets[0] < (2 + number) * _WORD.itemsize or offsets[-1] != len(data):
        raise ValueError("its samples are not where its offsets say")
    for start, end in pairwise(offsets):
        sizes = _read_words(data, start, 3)
        starts = list(accumulate(sizes, initial=start + 3 * _WORD.itemsize))
        if starts[-1] != end:
            raise ValueError("the fields of a sample do not fill it")
        yield [data[first:last] for first, last in pairwise(starts)]


def _file_of(samples: list[bytes], head: bytes) -> bytes:
    first = (2 + len(samples)) * _WORD.itemsize + len(head)
    offsets = accumulate(map(len, samples), initial=first)
    return b"".join([_words([len(samples), *offsets]), head, *samples])


def _words(numbers: Iterable[int]) -> bytes:
    return np.array(list(numbers), _WORD).tobytes()


def _read_words(data: bytes, start: int, number: int) -> list[int]:
    found: list[int] = np.frombuffer(data, _WORD, number, start).tolist()  # raises beyond the end
    return found
