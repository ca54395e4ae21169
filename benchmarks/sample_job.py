"""A job over real video: spans of copies of one video, each decoded and encoded separately."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.watched_run import job_of
from tokpipe.config import JobConfig
from tokpipe.types import WorkItem

SAMPLE = Path(__file__).parents[1] / "examples/data/bigbuckbunny.mp4"
"""132 frames of 1280x720, H.264, 25 per second."""
FPS = 8.0
CLIP_FRAMES = 17
SPAN_S = CLIP_FRAMES / FPS
SIZE = 128
_LAST_START_S = 3.0


def spans(folder: Path, count: int) -> list[tuple[str, float, float]]:
    """(path, first second, last second) of ``count`` clips, each from another file."""
    found = []
    for number in range(count):
        path = folder / f"videos/{number:05d}.mp4"
        path.parent.mkdir(exist_ok=True)
        os.link(_local_copy(folder), path)
        start = _LAST_START_S * (number % 8) / 8
        found.append((str(path), start, start + SPAN_S))
    return found


def _local_copy(folder: Path) -> Path:
    """The video on the same disk as its links, and never the project's own file."""
    copy = folder / "sample.mp4"
    if not copy.exists():
        copy.write_bytes(SAMPLE.read_bytes())
    return copy


def work_items(folder: Path, count: int) -> list[WorkItem]:
    """The same clips as items, to call a stage with."""
    return [
        WorkItem(row, f"{row:032x}", path, start_s=start, end_s=end)
        for row, (path, start, end) in enumerate(spans(folder, count))
    ]


def sample_job(folder: Path, count: int, **sections: Any) -> JobConfig:
    """A job over ``count`` clips; ``sections`` replace its defaults."""
    table = folder / "clips.parquet"
    columns = zip(*spans(folder, count), strict=True)
    pq.write_table(
        pa.table(dict(zip(("uri", "start", "end"), map(list, columns), strict=True))), table
    )
    source = {
        "kind": "table",
        "uri": str(table),
        "uri_column": "uri",
        "start_column": "start",
        "end_column": "end",
    }
    return job_of(
        {
            "dataset": "sample",
            "sources": [source],
            "output": {"uri": str(folder / "out")},
            "sampling": {"fps": FPS, "max_clip_frames": CLIP_FRAMES},
            "frames": {"size": [SIZE, SIZE]},
            "tokenizer": {"checkpoint": "builtin://fsq-4x8x8"},
            "encode": {"device": "cpu"},
            **sections,
        }
    )
