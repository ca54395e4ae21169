"""Bytes that the decode stage fetches of long videos in a store, of which a table has spans.

The videos are one minute of H.264 with B-frames and a key frame every 2 s, repeated. They lie in
fsspec's memory store, which is read like any other; what is counted are the bytes of its answers.
"""

import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.encoded import FPS, SOURCE, encode
from benchmarks.figures import Figure, Result, Skipped
from benchmarks.watched_run import job_of
from tokpipe.plan import PlanReader, write_plan
from tokpipe.stages.decode import DecodeStage
from tokpipe.storage import Store
from tokpipe.types import DecodedClip

Span = tuple[str, float, float]  # URI, start and end in seconds

SPAN_S = 5.0
HEIGHT = 720
SEED = 21


def run(quick: bool) -> Iterator[Result]:
    """Three spans of an hour against what they need, and 60 of two videos against their size."""
    if not SOURCE.exists():
        yield Skipped("ranged", f"{SOURCE} is missing; run it in a checkout of the repository")
        return
    draw, memory = random.Random(SEED), fsspec.filesystem("memory")
    num_minutes = 15 if quick else 60
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        minute = encode("h264", HEIGHT, 60 * FPS // (4 if quick else 1), folder).path
        try:
            long = _repeated(minute, folder / "long.mp4", 60 * num_minutes)
            memory.put_file(os.fspath(long), "/ranged/long.mp4")
            starts = [draw.uniform(0, 60 * num_minutes - SPAN_S) for _ in range(3)]
            spans = [("memory://ranged/long.mp4", at, at + SPAN_S) for at in starts]
            fetched, needed = _fetched(folder / "few", spans), _needed(long, spans)
            size, details = long.stat().st_size, {"spans": 3, "minutes": num_minutes}
            yield Figure(
                "bytes fetched for 3 spans of a long video / bytes needed",
                fetched / needed,
                "x",
                target=1.3,
                better="lower",
                details={**details, "MB": fetched / 1e6, "needed MB": needed / 1e6}
                | {"file MB": size / 1e6},
            )
            middle = _repeated(minute, folder / "middle.mp4", 600)
            uris = [f"memory://ranged/{one}.mp4" for one in range(2)]
            for one in range(2):
                memory.put_file(os.fspath(middle), f"/ranged/{one}.mp4")
            spans = [(uri, at, at + SPAN_S) for uri in uris for at in _starts(draw, 30, 600)]
            draw.shuffle(spans)
            fetched, size = _fetched(folder / "many", spans), 2 * middle.stat().st_size
            yield Figure(
                "bytes fetched for 60 shuffled spans of 2 videos / their size",
                fetched / size,
                "x",
                target=1.05,
                better="lower",
                details={"MB": fetched / 1e6, "files MB": size / 1e6},
            )
        finally:
            memory.rm("/ranged", recursive=True)


def _starts(draw: random.Random, count: int, length_s: float) -> list[float]:
    return [draw.uniform(0, length_s - SPAN_S) for _ in range(count)]


def _repeated(source: Path, target: Path, length_s: int) -> Path:
    """Repeat a video's packets up to a length, with its index at the end."""
    with av.open(os.fspath(source)) as before:
        stream = before.streams.video[0]
        packets = [one for one in before.demux(stream) if one.size]
        step = round(len(packets) / FPS / stream.time_base)
        with av.open(os.fspath(target), "w") as after:
            copy = after.add_stream_from_template(stream)
            for round_ in range(round(length_s * FPS / len(packets))):
                for one in packets:
                    again = av.Packet(bytes(one))
                    again.time_base, again.stream = one.time_base, copy
                    again.pts = one.pts + round_ * step
                    again.dts, again.duration = one.dts + round_ * step, one.duration
                    again.is_keyframe = one.is_keyframe
                    after.mux(again)
    return target


def _fetched(folder: Path, spans: Sequence[Span]) -> int:
    """Plan a table of spans, and decode them in the order of the plan with one decoder."""
    folder.mkdir()
    columns = zip(*spans, strict=True)
    names = ("uri", "start", "end")
    pq.write_table(
        pa.table(dict(zip(names, map(list, columns), strict=True))), folder / "clips.parquet"
    )
    source: dict[str, Any] = {"kind": "table", "uri": os.fspath(folder / "clips.parquet")}
    source |= {"uri_column": "uri", "start_column": "start", "end_column": "end"}
    job = job_of(
        {
            "dataset": "ranged",
            "sources": [{**source, "allowed_prefixes": ["memory://ranged"]}],
            "output": {"uri": os.fspath(folder / "out")},
            "sampling": {"fps": 8.0, "max_clip_frames": 40},
            "frames": {"size": [128, 128]},
            "tokenizer": {"checkpoint": "builtin://fsq-4x8x8"},
        }
    )
    store = Store(os.fspath(folder / "out"), job.storage)
    reader = PlanReader(store, write_plan(job, store, "attempt"), job.sources)
    fetched = 0
    with DecodeStage(job.sampling, job.frames, job.decode, job.storage) as stage:
        for item in reader.items(range(reader.num_rows)):
            (clip,) = stage.process([item])
            assert isinstance(clip, DecodedClip), clip
            fetched += stage.fetched_bytes
    return fetched


def _needed(path: Path, spans: Sequence[Span]) -> int:
    """The index, and the packets from a key frame to the last frame of each span."""
    with av.open(os.fspath(path)) as container:
        stream = container.streams.video[0]
        packets = [
            (float(one.pts * one.time_base), one.size, one.is_keyframe)
            for one in container.demux(stream)
            if one.size
        ]
    total: int = path.stat().st_size - sum(size for _, size, _ in packets)
    for _, start, end in spans:
        shown = [k for k, (time, _, _) in enumerate(packets) if start <= time < end]
        first = max(k for k, (time, _, key) in enumerate(packets) if key and time <= start)
        total += sum(size for _, size, _ in packets[first : max(shown) + 1])
    return total
