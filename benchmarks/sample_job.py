"""Jobs over real video: clips that are each in a file of its own, or spans of long videos."""

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.spans import repeat, write
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
Row = tuple[str, float, float]
"""Path, first second, last second."""
_ONCE_S = 25  # of a long video, encoded once and repeated


def long_spans(folder: Path, count: int, num_videos: int = 2) -> list[Row]:
    """One after the other in long videos of 720p, H.264 with B-frames; their order is shuffled."""
    each = -(-count // num_videos)
    once = write(folder / "once.mp4", 720, int(min(_ONCE_S, each * SPAN_S + 1) * 30))
    times = int(each * SPAN_S / _ONCE_S) + 1
    paths = [repeat(once, folder / f"long{number}.mp4", times) for number in range(num_videos)]
    rows = [
        (str(path), number * SPAN_S, (number + 1) * SPAN_S)
        for path in paths
        for number in range(each)
    ]
    random.Random(0).shuffle(rows)
    return rows[:count]


def spans(folder: Path, count: int) -> list[Row]:
    """``count`` clips, each from another file."""
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
    return job_over(folder, spans(folder, count), **sections)


def job_over(folder: Path, rows: Sequence[Row], **sections: Any) -> JobConfig:
    """A job over these rows."""
    table = folder / "clips.parquet"
    uris, starts, ends = map(list, zip(*rows, strict=True))
    columns = {"uri": uris, "start": starts, "end": ends, "begins": starts}  # The last is carried
    pq.write_table(pa.table(columns), table)
    source = {
        "kind": "table",
        "uri": str(table),
        "uri_column": "uri",
        "start_column": "start",
        "end_column": "end",
        "allowed_prefixes": sorted({str(Path(uri).parent) for uri in uris}),
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
