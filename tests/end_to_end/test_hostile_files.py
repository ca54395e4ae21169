"""A folder of good clips and every kind of bad file: the job ends, and says why of each."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from tests.end_to_end.jobs import (
    SAMPLE,
    assert_complete,
    codes_of,
    files,
    finish,
    rejections_of,
    run,
    start,
    write_job,
    write_video,
    write_videos,
)
from tokpipe.config import load_job
from tokpipe.reader import open_output


def _audio_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44_100)
        samples = av.AudioFrame.from_ndarray(
            np.zeros((1, 4096), np.float32), format="fltp", layout="mono"
        )
        samples.sample_rate = 44_100
        container.mux(stream.encode(samples))
        container.mux(stream.encode(None))


def _cut(share: float) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        whole = SAMPLE.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])

    return make


def _flipped(seed: int, begin: int, end: int, count: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        rng, data = random.Random(seed), bytearray(SAMPLE.read_bytes())
        for _ in range(count):
            data[rng.randrange(begin, min(end, len(data)))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)

    return make


def _patched(old: bytes, new: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        data = SAMPLE.read_bytes()
        assert old in data
        path.write_bytes(data.replace(old, new))

    return make


def _bytes(data: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_bytes(data)

    return make


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 30)


DECODED = "decoded"
BAD: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    # kind: (how to make it, outcomes that are honest)
    "empty.mp4": (lambda p: p.touch(), {"empty"}),
    "one_byte.mp4": (_bytes(b"x"), {"not_a_video"}),
    "text.mp4": (_bytes(b"not a video\n" * 99), {"not_a_video"}),
    "html.mp4": (_bytes(b"<html>404</html>"), {"not_a_video"}),
    "zeros.mp4": (_bytes(bytes(100_000)), {"not_a_video"}),
    "sparse.mp4": (_sparse, {"not_a_video"}),
    "noise.mp4": (
        _bytes(random.Random(0).randbytes(100_000)),
        {"not_a_video", "no_video", "corrupt"},
    ),
    "cut_10.mp4": (_cut(0.1), {"truncated", "corrupt", "not_a_video"}),
    "cut_50.mp4": (_cut(0.5), {"truncated", "corrupt", "not_a_video"}),
    "cut_99.mp4": (_cut(0.99), {"truncated", "corrupt", "not_a_video"}),
    "flip_header.mp4": (_flipped(1, 0, 400, 40), {"not_a_video", "no_video", "corrupt", DECODED}),
    "flip_frames.mp4": (_flipped(2, 100_000, 1_000_000, 200), {"corrupt", "truncated"}),
    "flip_one.mp4": (_flipped(3, 200_000, 900_000, 1), {"corrupt", "truncated", DECODED}),
    "no_codec.mp4": (
        _patched(b"avc1", b"zzz1"),
        {"no_video", "not_a_video", "unsupported", "corrupt"},
    ),
    "audio.mp4": (_audio_only, {"no_video"}),
    "wav.mp4": (
        _bytes(b"RIFF\x24\0\0\0WAVEfmt "),
        {"not_a_video", "no_video"},
    ),
    "directory.mp4": (lambda p: p.mkdir(), {"bad_row"}),
    "fifo.mp4": (lambda p: os.mkfifo(p), {"not_a_file"}),
    "dangling.mp4": (lambda p: p.symlink_to("nowhere"), {"missing"}),
    "loop.mp4": (lambda p: p.symlink_to("loop.mp4"), {"bad_uri"}),
    "one_frame.mp4": (lambda p: write_video(p, 1, seed=90), {DECODED}),
    "odd_size.mp4": (lambda p: _odd(p), {DECODED}),
    "tiny.mp4": (lambda p: write_video(p, 9, seed=91, size=(8, 8)), {DECODED}),
}


def _odd(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"qp": "20"})
        stream.width, stream.height, stream.pix_fmt = 33, 17, "yuv444p"
        for index in range(9):
            picture = np.full((17, 33, 3), 20 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.mark.ray
def test_every_kind_of_bad_file_is_rejected_or_honestly_decoded(
    tmp_path: Path, ray_address: str
) -> None:
    folder = tmp_path / "videos"
    good = write_videos(folder, 4)
    shutil.copy(SAMPLE, folder / "sample.mp4")
    for name, (make, _) in BAD.items():
        make(folder / name)
    job = write_job(
        tmp_path / "job.yaml",
        files(folder),
        str(tmp_path / "out"),
        decode={"deadline_s": 20},
        max_rejected_fraction=1.0,
    )
    code, printed = run(job, ray_address)
    assert code == 0, printed
    assert_complete(job)

    reasons = rejections_of(job)
    for name, (_, honest) in BAD.items():
        outcome = reasons.get(str(folder / name), DECODED)
        assert outcome in honest, f"{name}: {outcome}"
    config = load_job(job)
    tokenized = {clip.source_uri for clip in open_output(config.output.uri).clips()}
    assert {str(path) for path in good} <= tokenized
    assert str(folder / "sample.mp4") in tokenized
    for rejected in open_output(config.output.uri).rejected():
        assert len(rejected.message) > 15, rejected


@pytest.mark.ray
def test_too_many_rejected_clips_fail_the_job_with_their_own_code(
    tmp_path: Path, ray_address: str
) -> None:
    write_videos(tmp_path / "videos", 3)
    (tmp_path / "videos" / "bad.mp4").write_text("no video")
    job = write_job(
        tmp_path / "job.yaml",
        files(tmp_path / "videos"),
        str(tmp_path / "out"),
        max_rejected_fraction=0.05,
    )
    code, printed = run(job, ray_address)
    assert code == 4, printed
    assert "1 rejected: not_a_video 1" in printed
    assert len({clip_id for clip_id, _ in codes_of(job)}) == 9  # three videos of three clips


PLANTED_DECORD = '''
"""Stands in front of the real decord, and misbehaves for files that are called so."""
import ctypes, importlib, os, signal, sys
here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
path, me = list(sys.path), sys.modules.pop("decord")
sys.path[:] = [entry for entry in path if os.path.abspath(entry or ".") != here]
real = importlib.import_module("decord")
sys.path[:] = path
class VideoReader(real.VideoReader):
    def __init__(self, uri, *args, **kwargs):
        if "hangs" in os.path.basename(uri):
            ctypes.PyDLL(None).sleep(10_000)  # in C, holding the interpreter's lock
        if "crashes" in os.path.basename(uri):
            os.kill(os.getpid(), signal.SIGSEGV)
        super().__init__(uri, *args, **kwargs)
real.VideoReader = VideoReader
'''


@pytest.mark.ray
def test_a_decoder_that_hangs_and_one_that_crashes_cost_one_clip_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = tmp_path / "planted"
    (planted / "decord").mkdir(parents=True)
    (planted / "decord" / "__init__.py").write_text(PLANTED_DECORD)
    monkeypatch.setenv("PYTHONPATH", str(planted), prepend=os.pathsep)
    folder = tmp_path / "videos"
    write_videos(folder, 6)
    write_video(folder / "a_hangs.mp4", 20, seed=50)
    write_video(folder / "clip003_crashes.mp4", 20, seed=51)
    job = write_job(
        tmp_path / "job.yaml",
        files(folder),
        str(tmp_path / "out"),
        decode={"backend": "decord", "deadline_s": 3},
        max_rejected_fraction=1.0,
    )
    code, printed = finish(start(job))
    assert code == 0, printed
    assert_complete(job)
    assert rejections_of(job) == {
        str(folder / "a_hangs.mp4"): "timeout",
        str(folder / "clip003_crashes.mp4"): "crashed",
    }
    assert len({clip_id for clip_id, _ in codes_of(job)}) == 6 * 3
