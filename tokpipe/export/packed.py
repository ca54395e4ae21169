"""Files of samples, in the form that litdata and MDS share.

A file starts with its number of samples and the offsets at which each begins and the last one ends,
as uint32. A head follows, then the samples. A sample is the sizes of its fields, as uint32, and
their bytes.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Any

import numpy as np

from tokpipe.reader import Clip, Output

FILE_BYTES = 2**26  # The default of both libraries. A file is larger only if a single sample is

_WORD = np.dtype("<u4")


def samples_of(
    clips: Iterable[Clip], output: Output, array_head: Callable[[Any], bytes]
) -> Iterator[bytes]:
    """Yield each clip as a sample: id, codes after ``array_head(codes)``, and sidecar."""
    for clip in clips:
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


def _file_of(samples: list[bytes], head: bytes) -> bytes:
    first = (2 + len(samples)) * _WORD.itemsize + len(head)
    offsets = accumulate(map(len, samples), initial=first)
    return b"".join([_words([len(samples), *offsets]), head, *samples])


def _words(numbers: Iterable[int]) -> bytes:
    return np.array(list(numbers), _WORD).tobytes()


def sidecar(clip: Clip, output: Output) -> str:
    """Describe a clip as JSON, for formats that have a place for it."""
    values: dict[str, Any] = {
        "clip_id": clip.clip_id,
        "source_uri": clip.source_uri,
        "shape": clip.codes.shape,
        "fps": clip.fps,
        "chunk_latents": [len(chunk.codes) for chunk in clip.chunks],
        "first_is_image": [chunk.first_is_image for chunk in clip.chunks],
        "start_pts_s": clip.chunks[0].start_pts_s,
        "end_pts_s": clip.chunks[-1].end_pts_s,
        "marks": clip.marks,
        "metadata": clip.metadata,
        "fingerprint": output.fingerprint,
    }
    return json.dumps(values, default=str)
