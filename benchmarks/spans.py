"""Few frames of H.264 with B-frames, and spans of long videos, against ffmpeg decoding everything.

The file is what x264 makes by default: preset medium, three B-frames of which some are referred to,
a key frame every 250 frames or at a cut. ffmpeg decodes each frame of the whole file on one thread,
and scales and discards those at the same rate. tokpipe decodes in its child, on the same core, and
passes the frames on. Ratios are of CPU seconds, which other processes disturb least; those of wall
time are listed too.

``limit`` is how much faster FFmpeg's own decoder is, by itself, when it leaves out every frame to
which no other refers: the most that leaving out can bring if no such frame is wanted.
"""

import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av

from benchmarks.decode import Contestant, ffmpeg_program, on_one_core, seconds_of
from benchmarks.encoded import SOURCE, pictures
from benchmarks.figures import Figure, Result, Skipped
from benchmarks.timing import Times, by_turns, ratio
from tokpipe.config.job import DecodeConfig, FramesConfig, SamplingConfig
from tokpipe.media.decoder import VideoDecoder

FPS = 30
SIZE = 256
ROUNDS = 5
SPAN_S = 5
SPANS = 60
"""Of each video's 120."""
SPARSE_TARGETS = {2: 1.5, 8: 1.2}
"""Times as fast as ffmpeg, by frames per second."""
SPANS_TARGET = 1.2
"""Seconds, of ffmpeg's."""
_HEIGHTS = (360, 720)
_VIDEO_S = 600
_ONCE_S = 25  # encoded once, and repeated


def run(quick: bool) -> Iterator[Result]:
    """2 and 8 of 30 frames per second, then spans of two videos of ten minutes."""
    program = ffmpeg_program()
    if program is None or not SOURCE.exists():
        yield Skipped("spans", "it needs ffmpeg (install .[bench]) and a checkout with examples/")
        return
    once_s, spans = (4, 2) if quick else (_ONCE_S, SPANS)
    video_s = 20 if quick else _VIDEO_S
    with tempfile.TemporaryDirectory() as folder, on_one_core():
        for height in _HEIGHTS[:1] if quick else _HEIGHTS:
            path = write(Path(folder) / f"{height}.mp4", height, once_s * FPS)
            for fps, target in SPARSE_TARGETS.items():
                yield _sparse(program, path, fps, target, 1 if quick else ROUNDS)
        once = Path(folder) / f"{_HEIGHTS[0]}.mp4"
        videos = [repeat(once, Path(folder) / f"{k}.mp4", video_s // once_s) for k in range(2)]
        yield _spans(program, videos, spans, video_s, 1 if quick else ROUNDS)


def write(path: Path, height: int, num_frames: int) -> Path:
    with av.open(os.fspath(path), "w") as container:
        options = {"preset": "medium", "crf": "23", "bf": "3"}
        stream: Any = container.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = height * 16 // 9, height, "yuv420p"
        stream.codec_context.gop_size = 250
        stream.codec_context.thread_count = 1
        for index, picture in enumerate(pictures(num_frames)):
            size = stream.width, stream.height
            frame = picture.reformat(*size, "yuv420p", interpolation="BICUBIC", threads=1)
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            frame.pict_type = av.video.frame.PictureType.NONE
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def repeat(source: Path, target: Path, times: int) -> Path:
    """Copy the packets of a file that begins with a key frame several times."""
    with av.open(os.fspath(target), "w") as after:
        copy: Any = None
        for number in range(times):
            with av.open(os.fspath(source)) as before:
                stream = before.streams.video[0]
                copy = copy or after.add_stream_from_template(stream)
                assert stream.duration is not None
                for packet in before.demux(stream):
                    if packet.dts is not None and packet.pts is not None:
                        packet.dts += number * stream.duration
                        packet.pts += number * stream.duration
                        packet.stream = copy
                        after.mux(packet)
    return target


def _sparse(program: str, path: Path, fps: int, target: float, rounds: int) -> Figure:
    decoder = _decoder(fps)
    wall, cpu = _compare(program, [path], fps, decoder, [(path, None, None)], rounds)
    decoder.close()
    whole, part = _decoding_s(path, "DEFAULT", rounds), _decoding_s(path, "NONREF", rounds)
    return Figure(
        f"h264 {path.stem}p with B-frames, {fps} of {FPS} fps against ffmpeg",
        ratio(cpu["ffmpeg"], cpu["tokpipe"]),
        "x",
        target,
        details={
            "limit": ratio(whole, part),
            "by wall time": ratio(wall["ffmpeg"], wall["tokpipe"]),
            "CPU s": cpu["tokpipe"].median,
            "ffmpeg CPU s": cpu["ffmpeg"].median,
        },
    )


def _spans(program: str, videos: list[Path], num: int, video_s: int, rounds: int) -> Figure:
    rng, asked = random.Random(0), []
    for video in videos:
        starts = sorted(rng.sample(range(0, video_s, SPAN_S), num))
        asked += [(video, start, start + SPAN_S) for start in starts]
    decoder = _decoder(8)
    wall, cpu = _compare(program, videos, 8, decoder, asked, rounds)
    decoder.close()
    return Figure(
        f"{num} spans of {SPAN_S} s of each of two videos of {video_s} s, 8 fps, against one pass",
        ratio(cpu["tokpipe"], cpu["ffmpeg"]),
        "x",
        SPANS_TARGET,
        better="lower",
        details={
            "by wall time": ratio(wall["tokpipe"], wall["ffmpeg"]),
            "CPU s": cpu["tokpipe"].median,
            "ffmpeg CPU s": cpu["ffmpeg"].median,
        },
        remark="CPU seconds; the videos are local, and their timelines are read once",
    )


def _decoder(fps: int) -> VideoDecoder:
    return VideoDecoder(
        DecodeConfig(backend="pyav"),
        SamplingConfig(fps=fps, max_clip_frames=10_000),
        FramesConfig(size=(SIZE, SIZE)),
    )


def _compare(
    program: str,
    videos: list[Path],
    fps: int,
    decoder: VideoDecoder,
    asked: Sequence[tuple[Path, float | None, float | None]],
    rounds: int,
) -> tuple[dict[str, Times], dict[str, Times]]:
    """Wall and CPU seconds of both."""

    def ours() -> tuple[float, float]:
        started, used = time.perf_counter(), _cpu_s(decoder)
        for path, start_s, end_s in asked:
            decoder.decode(path, start_s=start_s, end_s=end_s)
        return time.perf_counter() - started, _cpu_s(decoder) - used

    def theirs() -> tuple[float, float]:
        seconds = [_by_ffmpeg(program, path, fps) for path in videos]
        return sum(wall for wall, _ in seconds), sum(cpu for _, cpu in seconds)

    calls = {"tokpipe": Contestant(ours), "ffmpeg": Contestant(theirs)}
    by_turns(calls, rounds=rounds, warmups=1)
    times = {name: call.times(rounds) for name, call in calls.items()}
    wall, cpu = ({name: both[k] for name, both in times.items()} for k in range(2))
    return wall, cpu


def _cpu_s(decoder: VideoDecoder) -> float:
    """Of this process and the decoding child."""
    return time.process_time() + time.clock_gettime((~decoder.start().pid << 3) | 2)


def _by_ffmpeg(program: str, path: Path, fps: int) -> tuple[float, float]:
    command = (
        *(program, "-benchmark", "-nostdin", "-hide_banner", "-threads", "1"),
        *("-filter_threads", "1", "-i", os.fspath(path), "-an"),
        *("-vf", f"fps={fps},scale={SIZE * 16 // 9}:{SIZE}:flags=bilinear"),
        *("-pix_fmt", "rgb24", "-f", "null", "-"),
    )
    return seconds_of(command)


def _decoding_s(path: Path, skipped: str, rounds: int) -> Times:
    """CPU seconds of decoding alone."""
    timed = by_turns(
        {skipped: partial(_decode, path, skipped)}, rounds=rounds, clock=time.process_time
    )
    return timed[skipped]


def _decode(path: Path, skipped: Any) -> None:
    with av.open(os.fspath(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        stream.codec_context.skip_frame = skipped
        for _ in container.decode(stream):
            pass
