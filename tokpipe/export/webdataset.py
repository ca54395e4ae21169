"""Tars in the layout of WebDataset: the files of a clip stand together, called after its id."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tokpipe.export.counts import Counts
from tokpipe.export.described import described
from tokpipe.reader import Output
from tokpipe.reader.values import Clip

TAR_BYTES = 2**28
"""A tar is closed at about this size."""


def write(output: Output, folder: Path) -> None:
    """Write all clips to ``000000.tar`` and so on. Holds two shards in memory."""
    clips = output.clips()
    number, clip = 0, next(clips, None)
    while clip is not None:
        with tarfile.open(folder / f"{number:06}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            size = 0
            while clip is not None and size < TAR_BYTES:
                size += _add(tar, clip, output)
                clip = next(clips, None)
        number += 1


def count(folder: Path) -> Counts:
    """Count by reading every array."""
    num_clips = num_codes = 0
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                if file is not None and member.name.endswith(".npy"):
                    num_clips += 1
                    num_codes += np.load(io.BytesIO(file.read())).size  # fails if it was cut
    return Counts(num_clips, num_codes)


def _add(tar: tarfile.TarFile, clip: Clip, output: Output) -> int:
    """Add a clip's files; return their bytes."""
    size = 0
    for ending, data in _files_of(clip, output):
        header = tarfile.TarInfo(f"{clip.clip_id}.{ending}")
        header.size = len(data)
        tar.addfile(header, io.BytesIO(data))
        size += len(data)
    return size


def _files_of(clip: Clip, output: Output) -> Iterator[tuple[str, bytes]]:
    codes = clip.codes
    array = io.BytesIO()
    np.save(array, codes.astype(codes.dtype.newbyteorder("<"), copy=False))
    yield "npy", array.getvalue()
    yield "json", described(clip, output).encode()
