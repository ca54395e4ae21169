"""Writes with litdata and MosaicML's streaming the samples that exports have.

    python -m tests.export.by_libraries

regenerates tests/export/written/. Needs both libraries (litdata 0.2.76, streaming 0.13).
"""

import json
import shutil
from itertools import count
from pathlib import Path
from typing import Any

from tests.formats.formats_helpers import encoded_clip
from tests.reader.reader_helpers import store_with
from tokpipe.export.packed import FILE_BYTES
from tokpipe.export.samples import Source
from tokpipe.reader.compose import Template
from tokpipe.reader.output import Output

WRITTEN = Path(__file__).parent / "written"
CODEBOOK_SIZES = {"uint16": 8192, "uint32": 262_144}


def output_of(grids: list[tuple[int, int]], codebook_size: int = 8192) -> Output:
    """An output with a shard of three clips for each grid."""
    shards = [
        [encoded_clip(row, [5, 1 + row], grid, codebook_size) for row in range(start, start + 3)]
        for start, grid in zip(count(0, 3), grids, strict=False)
    ]
    return Output(store_with(*shards, codebook_size=codebook_size))


def small_output(dtype: str) -> Output:
    """Clips of two grids, one with a side that does not fit into a byte."""
    return output_of([(2, 3), (1, 300)], CODEBOOK_SIZES[dtype])


def samples_of(output: Output, template: Template | None = None) -> list[dict[str, Any]]:
    return [
        {"clip_id": sample.clip_id, **sample.arrays, "json": sample.sidecar}
        for sample in Source(output, template).samples()
    ]


def write_litdata(output: Output, folder: Path) -> None:
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_bytes=FILE_BYTES)
    for number, sample in enumerate(samples_of(output)):
        writer.add_item(number, sample)
    writer.done()
    writer.merge()


def write_mds(output: Output, folder: Path) -> None:
    from streaming.base.format.mds.writer import MDSWriter

    dtype = output.tokenizer.code_dtype
    columns = {"clip_id": "str", "codes": f"ndarray:{dtype}", "json": "json"}
    with MDSWriter(columns=columns, out=str(folder), hashes=["sha256"]) as writer:
        for sample in samples_of(output):
            writer.write({**sample, "json": json.loads(sample["json"])})


def main() -> None:
    shutil.rmtree(WRITTEN, ignore_errors=True)
    for dtype in CODEBOOK_SIZES:
        for name, write in (("litdata", write_litdata), ("mds", write_mds)):
            folder = WRITTEN / f"{name}-{dtype}"
            folder.mkdir(parents=True)
            write(small_output(dtype), folder)


if __name__ == "__main__":
    main()
