"""Writes with litdata and MosaicML's streaming the samples that exports have.

    python -m tests.export.by_libraries

regenerates tests/export/written/. Needs both libraries (litdata 0.2.76, streaming 0.13).
"""

import json
import shutil
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from tests.formats.formats_helpers import encoded_clip
from tests.reader.reader_helpers import store_with
from tokpipe.export.packed import FILE_BYTES
from tokpipe.export.samples import Source
from tokpipe.reader.compose import Template, Vocabulary
from tokpipe.reader.output import Output

WRITTEN = Path(__file__).parent / "written"
CODEBOOK_SIZES = {"uint16": 8192, "uint32": 262_144, "tokens": 8192}
"""The dtypes of codes; or clips as tokens of ``template``."""


def output_of(grids: list[tuple[int, int]], codebook_size: int = 8192) -> Output:
    """An output with a shard of three clips for each grid."""
    shards = [
        [encoded_clip(row, [5, 1 + row], grid, codebook_size) for row in range(start, start + 3)]
        for start, grid in zip(count(0, 3), grids, strict=False)
    ]
    return Output(store_with(*shards, codebook_size=codebook_size))


def small_output(kind: str) -> Output:
    """Clips of two grids, one with a side that does not fit into a byte."""
    return output_of([(2, 3), (1, 300)], CODEBOOK_SIZES[kind])


def template(kind: str) -> Template | None:
    special = {name: 8192 + number for number, name in enumerate(("bos", "eol", "eof"))}
    vocabulary = Vocabulary([{"size": 8192, "offset": 0}], special=special)
    layout = "{bos}{frames:{rows:{row}{eol}}{eof}}"
    return Template(layout, vocabulary, loss=["codes"]) if kind == "tokens" else None


def samples_of(kind: str) -> list[dict[str, Any]]:
    """What exports of ``small_output`` hold."""
    return [
        {"clip_id": sample.clip_id, **sample.arrays, "json": sample.sidecar}
        for sample in Source(small_output(kind), template(kind)).samples()
    ]


def write_litdata(samples: list[dict[str, Any]], folder: Path) -> None:
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_bytes=FILE_BYTES)
    for number, sample in enumerate(samples):
        writer.add_item(number, dict(sorted(sample.items())))
    writer.done()
    writer.merge()


def write_mds(samples: list[dict[str, Any]], folder: Path) -> None:
    from streaming.base.format.mds.writer import MDSWriter

    columns = {
        name: f"ndarray:{value.dtype}" if isinstance(value, np.ndarray) else "str"
        for name, value in samples[0].items()
    } | {"json": "json"}
    with MDSWriter(columns=columns, out=str(folder), hashes=["sha256"]) as writer:
        for sample in samples:
            writer.write({**sample, "json": json.loads(sample["json"])})


def main() -> None:
    shutil.rmtree(WRITTEN, ignore_errors=True)
    for kind in CODEBOOK_SIZES:
        for name, write in (("litdata", write_litdata), ("mds", write_mds)):
            folder = WRITTEN / f"{name}-{kind}"
            folder.mkdir(parents=True)
            write(samples_of(kind), folder)


if __name__ == "__main__":
    main()
