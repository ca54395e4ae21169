"""Tars in the layout of WebDataset: ``<clip id>.npy``, then ``<clip id>.json``."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tokpipe.export.packed import sidecar
from tokpipe.reader import Clip, Output

TAR_BYTES = 2**28  # A tar is closed at about this size


def write(clips: Iterable[Clip], output: Output, folder: Path) -> None:
    """Write clips to ``000000.tar`` and so on, in order. Holds two shards in memory."""
    rest = iter(clips)
    number, clip = 0, next(rest, None)
    while clip is not None:
        with tarfile.open(folder / f"{number:06}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            size = 0
            while clip is not None and size < TAR_BYTES:
                size += _add(tar, clip, output)
                clip = next(rest, None)
        number += 1


def _add(tar: tarfile.TarFile, clip: Clip, output: Output) -> int:
    array = io.BytesIO()
    np.save(array, clip.codes)
    files = {"npy": array.getvalue(), "json": sidecar(clip, output).encode()}
    for ending, data in files.items():
        header = tarfile.TarInfo(f"{clip.clip_id}.{ending}")
        header.size = len(data)
        tar.addfile(header, io.BytesIO(data))
    return sum(map(len, files.values()))
