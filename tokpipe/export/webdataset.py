"""Tars in the layout of WebDataset: ``<clip id>.npy`` or ``<clip id>.tokens.npy`` and so on, then
``<clip id>.json``."""

import io
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from tokpipe.export.samples import Sample, Source

TAR_BYTES = 2**28  # A tar is closed at about this size


def write_webdataset(samples: Iterable[Sample], source: Source, folder: Path) -> None:
    """Write clips to ``000000.tar`` and so on, in order. Holds two shards in memory."""
    rest = iter(samples)
    number, sample = 0, next(rest, None)
    while sample is not None:
        with tarfile.open(folder / f"{number:06}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            size = 0
            while sample is not None and size < TAR_BYTES:
                for ending, data in _files(sample):
                    header = tarfile.TarInfo(f"{sample.clip_id}.{ending}")
                    header.size = len(data)
                    tar.addfile(header, io.BytesIO(data))
                    size += len(data)
                sample = next(rest, None)
        number += 1


def _files(sample: Sample) -> Iterator[tuple[str, bytes]]:
    for name, values in sample.arrays.items():
        array = io.BytesIO()
        np.save(array, values)
        yield "npy" if name == "codes" else f"{name}.npy", array.getvalue()
    yield "json", sample.sidecar.encode()
