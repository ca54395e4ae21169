"""Source frames per CPU second of each decoder, through the whole decode path, against ffmpeg.

Both sides decode every frame of the same file with one thread and scale the frames that are kept to
the same size, with the same filter, to RGB. ffmpeg discards the result. tokpipe reads the timeline,
decodes in its child, checks every frame's time, and passes the frames on in shared memory. Parent,
child and ffmpeg share one core. Each time the file is opened and listed as if it were a new one.

ffmpeg's scaler works as it does unless told otherwise. For H.264 it also makes the very pixels of
tokpipe ("the same pixels": planes before colours are put together, exact rounding, cropped), which
is faster or slower depending on the processor and the release, and decodes without scaling.

decord2 installs a module called decord. It takes part if ``DECORD2`` names a folder that
``pip install --no-deps --target FOLDER decord2`` has made.

Neither side's seconds have the start of its process: ffmpeg starts for every file, a child once for
many clips. Wall time is listed too: on a core that nothing else uses, it is nearly the same.
"""

import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path

from benchmarks.encoded import CODECS, FPS, SOURCE, Encoded, encode, has_encoder
from benchmarks.figures import Figure, Result, Skipped
from benchmarks.timing import Times, by_turns, ratio
from tokpipe.config.job import DecodeConfig, FramesConfig, SamplingConfig
from tokpipe.errors import ConfigError, SourceError
from tokpipe.media.decoder import VideoDecoder

SIZE = 256
"""Rows and columns of the frames that are kept."""
COMMON = (360, 480, 720, 1080)
ROUNDS = 3
"""On a virtual machine the same work was seen to take from 0.9 to 1.2 times its median."""
BACKENDS = ("pyav", "decord", "decord2")
"""``auto``, the default, is PyAV."""
_FRAMES = {240: 532, 360: 400, 480: 266, 720: 266, 1080: 133}
_WAYS = {"every frame": (None, 0.0), "every third": (FPS / 3, 0.0), "the last second": (None, 1.0)}
"""Frames per second, and from how many seconds before the end; 0 for the whole file."""
_SAME = "+accurate_rnd+bitexact:in_color_matrix=bt709:in_range=limited:out_range=full"
_SAME += f",format=gbrp,crop={SIZE}:{SIZE},format=rgb24"
_SCALES = {"ffmpeg": "", "the same pixels": _SAME, "decoding alone": None}
"""What follows the filter that ffmpeg scales with, if it scales."""


def run(quick: bool) -> Iterator[Result]:
    """H.264 in every size and the other codecs in one, with all frames and with some of them."""
    program = ffmpeg_program()
    if program is None:
        yield Skipped("decode", "there is no ffmpeg; install .[bench]")
        return
    if not SOURCE.exists():
        yield Skipped("decode", f"{SOURCE} is missing; run it in a checkout of the repository")
        return
    backends = list(BACKENDS)
    if "DECORD2" not in os.environ:
        backends.remove("decord2")
    every_frame: dict[tuple[str, int], Figure] = {}
    with tempfile.TemporaryDirectory() as folder, on_one_core():
        for codec in CODECS[:1] if quick else CODECS:
            if not has_encoder(codec):
                yield Skipped(codec, "this PyAV has no encoder for it")
                continue
            sizes = {720: _FRAMES[720]} if codec != CODECS[0] else _FRAMES
            for height, num_frames in ({240: 48} if quick else sizes).items():
                clip = encode(codec, height, num_frames, Path(folder))
                for way in _WAYS:
                    for backend, result in _compare(program, clip, way, backends, quick):
                        yield result
                        is_whole = (backend, way) == ("pyav", "every frame")
                        if is_whole and isinstance(result, Figure):
                            every_frame[codec, height] = result
                clip.path.unlink()
    yield from _summary(every_frame)


def _compare(
    program: str, clip: Encoded, way: str, backends: list[str], quick: bool
) -> Iterator[tuple[str, Result]]:
    """Yield a result for each backend; remove those that do not load from ``backends``."""
    title = f"{clip.codec} {clip.height}p, {way}"
    rounds = 1 if quick else ROUNDS
    with ExitStack() as stack:
        ours: dict[str, _Ours] = {}
        known = clip.codec == CODECS[0] and _WAYS[way] == (None, 0.0)
        scales = _SCALES if known else ["ffmpeg"]
        by_ffmpeg = partial(_by_ffmpeg, program, _start(program), clip, way)
        calls = {name: Contestant(partial(by_ffmpeg, _SCALES[name])) for name in scales}
        for name in tuple(backends):
            try:
                one = _Ours(name, clip, way)
                stack.callback(one.close)
                one.decode()  # starts the child, and shows whether it can
            except ConfigError as error:
                backends.remove(name)
                yield name, Skipped(name, str(error).partition("\n")[0])
                continue
            except SourceError as error:
                yield name, Skipped(f"{title}, {name}", str(error))
                continue
            if one.backend != name.removesuffix("2"):
                yield name, Skipped(f"{title}, {name}", "it leaves such files to PyAV")
            else:
                ours[name], calls[name] = one, Contestant(one.decode)
        by_turns(calls, rounds=rounds, warmups=1)
        their_wall, their_cpu = calls["ffmpeg"].times(rounds)
        num_frames = FPS * _WAYS[way][1] or clip.num_frames
        for name, one in ours.items():
            wall, cpu = calls[name].times(rounds)
            details: dict[str, float | int | str | bool] = {
                "by wall time": ratio(their_wall, wall),
                "frames/s": num_frames / wall.median,
                "frames per CPU second": num_frames / cpu.median,
                "ffmpeg frames/s": num_frames / their_wall.median,
                "ffmpeg frames per CPU second": num_frames / their_cpu.median,
                "decoded by": one.backend,
                "kbit/s": clip.kbit_per_s,
            }
            for other in [*calls][1 : len(scales)]:
                details[f"against ffmpeg, {other}"] = ratio(calls[other].times(rounds)[1], cpu)
            against = ratio(their_cpu, cpu)
            yield name, Figure(f"{title}, {name} against ffmpeg", against, "x", details=details)


def _summary(figures: dict[tuple[str, int], Figure]) -> Iterator[Result]:
    for title, target, chosen in (
        ("H.264 of 360p to 1080p", 1.0, [("h264", height) for height in COMMON]),
        ("all codecs and sizes", 0.9, list(figures)),
    ):
        found = {key: figures[key] for key in chosen if key in figures}
        if not found:
            continue
        cpu = {f"{codec} {height}p": figure.value for (codec, height), figure in found.items()}
        worst = min(cpu, key=lambda name: cpu[name])
        medians = {
            name: statistics.median(values)
            for name in ("by wall time", *(f"against ffmpeg, {one}" for one in [*_SCALES][1:]))
            if (values := [float(f.details[name]) for f in found.values() if name in f.details])
        }
        yield Figure(
            f"{title}, every frame, pyav against ffmpeg: median",
            statistics.median(cpu.values()),
            "x",
            target,
            details={
                "worst": cpu[worst],
                "worst is": worst,
                **medians,
            },
        )


class Contestant:
    """Decodes one file when called, and records the wall and CPU seconds of each call."""

    def __init__(self, decode: Callable[[], tuple[float, float]]) -> None:
        self._decode = decode
        self._seconds: list[tuple[float, float]] = []

    def __call__(self) -> None:
        self._seconds.append(self._decode())

    def times(self, rounds: int) -> tuple[Times, Times]:
        """Wall and CPU seconds of the last ``rounds`` calls."""
        wall, cpu = zip(*self._seconds[-rounds:], strict=True)
        return Times(wall), Times(cpu)


class _Ours:
    """The decode path of a job. CPU seconds are those of parent and child together."""

    def __init__(self, backend: str, clip: Encoded, way: str) -> None:
        fps, last_s = _WAYS[way]
        self.clip, self.backend = clip, backend
        self._decoder = VideoDecoder(
            DecodeConfig.model_validate({"backend": backend.removesuffix("2")}),
            SamplingConfig(fps=fps, max_clip_frames=clip.num_frames),
            FramesConfig(size=(SIZE, SIZE)),
        )
        self.close = self._decoder.close
        self._start_s = clip.num_frames / FPS - last_s if last_s else None
        path = sys.path[:]
        if backend == "decord2":
            sys.path.insert(0, os.environ["DECORD2"])
        try:
            self._decoder.start()
        finally:
            sys.path[:] = path

    def decode(self) -> tuple[float, float]:
        os.utime(self.clip.path)  # so that the child knows nothing of it
        started, used = time.perf_counter(), self._cpu_s()
        self.backend = self._decoder.decode(self.clip.path, start_s=self._start_s).backend
        return time.perf_counter() - started, self._cpu_s() - used

    def _cpu_s(self) -> float:
        pid = self._decoder.start().pid
        # The clock id that Linux uses for all threads of a process.
        return time.process_time() + time.clock_gettime((~pid << 3) | 2)


def _by_ffmpeg(
    program: str, start: tuple[float, float], clip: Encoded, way: str, more: str | None
) -> tuple[float, float]:
    """Decode, scale as the job would, discard: wall and CPU seconds without those of ``start``."""
    fps, last_s = _WAYS[way]
    seek = ("-ss", f"{clip.num_frames / FPS - last_s:.2f}") if last_s else ()
    scale = f"scale={round(clip.width * SIZE / clip.height)}:{SIZE}:flags=bilinear{more}"
    scale = scale if fps is None else f"fps={fps:g},{scale}"
    command = (
        *(program, "-nostdin", "-hide_banner"),
        *("-threads", "1", "-filter_threads", "1", *seek, "-i", os.fspath(clip.path), "-an"),
        *(() if more is None else ("-vf", scale, "-pix_fmt", "rgb24")),
        *("-f", "null", "-"),
    )
    wall, cpu = _run(command)
    return wall - start[0], cpu - start[1]


@cache
def _start(program: str) -> tuple[float, float]:
    """Wall and CPU seconds that a program takes to start, at the least."""
    wall, cpu = zip(*(_run([program, "-version"]) for _ in range(5)), strict=True)
    return min(wall), min(cpu)


def _run(command: Sequence[str]) -> tuple[float, float]:
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - started, cpu_s


def seconds_of(command: Sequence[str]) -> tuple[float, float]:
    """Wall and CPU seconds of a command of ffmpeg's, as its ``-benchmark`` prints them."""
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"utime=([\d.]+)s stime=([\d.]+)s rtime=([\d.]+)s", done.stderr)
    assert found, done.stderr
    user, system, wall = map(float, found.groups())
    return wall, user + system


def ffmpeg_program() -> str | None:
    """The program of the package imageio-ffmpeg, whose version is known, or the system's."""
    try:
        import imageio_ffmpeg
    except ImportError:
        return shutil.which("ffmpeg")
    return str(imageio_ffmpeg.get_ffmpeg_exe())


@contextmanager
def on_one_core() -> Iterator[None]:
    """Keep this thread, and the processes that it starts, on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
