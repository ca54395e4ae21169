"""Every frame of every kind of file, in order, whichever decoder a job names."""

import random
import subprocess
import sys
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.media import charts
from tests.media.conftest import Lab
from tests.videos import (
    FRAGMENTED,
    QUIET_X265,
    VP9,
    copy_from,
    encode,
    numbers_of,
    write_size_change,
    write_video,
)

_ticks = list(accumulate(random.Random(1).choices([1, 2, 5, 9], k=30)))
VFR = {"pts": _ticks, "time_base": Fraction(1, 90)}
MPEG2 = {"codec": "mpeg2video", "options": {"bf": "2"}}
MPEG4 = {"codec": "mpeg4", "options": {"bf": "2"}}

X265 = {"preset": "ultrafast", "crf": "12"}
QUIET = QUIET_X265 + ":frame-threads=1"

SETTINGS: dict[str, dict[str, Any]] = {
    "cfr.mp4": {}, "h264-b.avi": {}, "h264.mkv": {}, "h264.ts": {}, "h264.flv": {},
    "vfr.mp4": VFR, "vfr.mkv": VFR,
    "late.mp4": {"pts": range(7, 37)},
    "b-pyramid.mp4": {
        "options": {"bf": "3", "preset": "medium", "x264-params": "b-pyramid=normal:ref=4"},
    },
    "open-gop.mp4": {
        "num_frames": 60, "gop": 12,
        "options": {"bf": "3", "preset": "medium", "x264-params": "open-gop=1"},
    },
    "fragmented.mp4": FRAGMENTED,
    "audio.mp4": {"audio": True},
    "hevc.mp4": {"codec": "libx265", "options": {**X265, "x265-params": QUIET}},
    "hevc-open-gop.mp4": {
        "num_frames": 40, "codec": "libx265",
        "options": {**X265, "bf": "3", "x265-params": QUIET + ":open-gop=1:keyint=10"},
    },
    "vp9.webm": VP9,
    "vp9-altref.webm": {
        "num_frames": 60, "codec": "libvpx-vp9", "gop": 30,
        "options": {"deadline": "good", "cpu-used": "5", "lag-in-frames": "16"},
    },
    "vp8-altref.webm": {
        "num_frames": 60, "codec": "libvpx", "gop": 30,
        "options": {"auto-alt-ref": "1", "cpu-used": "5", "lag-in-frames": "16"},
    },
    "av1.mp4": {
        "num_frames": 20, "codec": "libsvtav1", "size": (64, 64),
        "options": {"preset": "12", "crf": "20"},
    },
    "mpeg4-b.mp4": MPEG4, "mpeg4-b.avi": MPEG4, "mpeg2.ts": MPEG2, "mpeg2.mpg": MPEG2,
    "interlaced.mp4": {"options": {"x264-params": "interlaced=1"}},
    "10-bit.mp4": {"pix_fmt": "yuv420p10le"},
    "444.mp4": {"pix_fmt": "yuv444p"},
    "17x13.mp4": {"size": (13, 17), "pix_fmt": "yuv444p"},
    "321x241.mp4": {"size": (241, 321), "pix_fmt": "yuv444p"},
    "321x241.webm": {"num_frames": 10, "size": (241, 321), **VP9},
    "fps-1000.mp4": {"fps": 1000},
    "one-frame.mp4": {"num_frames": 1},
    "lossless-rgb.mkv": {"num_frames": 10, "codec": "ffv1", "pix_fmt": "bgr0"},
    "moving.gif": {"num_frames": 10, "codec": "gif", "pix_fmt": "rgb8"},
    "motion-jpeg.avi": {"num_frames": 10, "codec": "mjpeg", "pix_fmt": "yuvj420p"},
}  # fmt: skip
CASES = {name: {"num_frames": 30, **settings} for name, settings in SETTINGS.items()}
"""Settings of ``write_video``, by file name."""

BY_DECORD = {
    *("cfr.mp4", "h264.mkv", "vfr.mp4", "vfr.mkv", "late.mp4", "b-pyramid.mp4", "open-gop.mp4"),
    *("fragmented.mp4", "audio.mp4", "hevc.mp4", "hevc-open-gop.mp4", "vp9.webm"),
    *("vp9-altref.webm", "fps-1000.mp4", "one-frame.mp4"),
}
"""``backend: decord`` decodes these with decord, and the others with PyAV."""


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    return write_video(path, 100, gop=20, options={"preset": "medium"})


@pytest.mark.parametrize("name", CASES)
def test_every_backend_returns_every_frame_in_order(name: str, lab: Lab) -> None:
    settings = CASES[name]
    path = lab.write(name, **settings)
    auto = lab.decoder().decode(path)
    assert numbers_of(auto.frames) == list(range(settings["num_frames"]))
    assert auto.backend == "pyav"
    decord = lab.decoder(backend="decord").decode(path)
    assert decord.backend == ("decord" if name in BY_DECORD else "pyav")
    assert np.abs(auto.frames.astype(int) - decord.frames).max() <= 1
    assert np.array_equal(auto.pts_s, decord.pts_s)
    ticks = settings.get("pts", range(settings["num_frames"]))
    unit = settings.get("time_base", 1 / Fraction(settings.get("fps", 25)))
    times_s = [float((tick - ticks[0]) * unit) for tick in ticks]
    np.testing.assert_allclose(auto.pts_s, times_s, atol=6e-4)  # Matroska counts milliseconds


@pytest.mark.parametrize("crop", ["8,0,0,0", "0,8,0,0", "18,8,20,16"])
def test_what_decord_shows_elsewhere_in_the_frame_is_decoded_by_pyav(crop: str, lab: Lab) -> None:
    options = {"x264-params": f"crop-rect={crop}"}
    path = lab.write("cropped.mp4", 5, size=(64, 96), first_number=2748, options=options)
    named = lab.decoder(backend="decord").decode(path)
    assert np.abs(named.frames.astype(int) - lab.decoder().decode(path).frames).max() <= 3
    assert named.backend == ("decord" if crop == "0,8,0,0" else "pyav")


@pytest.mark.parametrize("matrix", [*charts.MATRICES, charts.UNTAGGED])
@pytest.mark.parametrize("full", [False, True])
def test_colours_by_decord_are_those_of_a_chart(matrix: int, full: bool, lab: Lab) -> None:
    tags = {"colorspace": matrix, "color_range": 1 + full}
    used = 5 if matrix == charts.UNTAGGED else matrix
    planes = charts.samples(charts.chart(), "yuv420p", used, full)
    path = charts.write_planes(
        lab.folder / "chart.mp4", planes, "yuv420p", codec="libx264", tags=tags
    )
    for size in charts.SIZES.values():
        video = lab.decoder(backend="decord", size=size).decode(path)
        assert video.backend == "decord"
        assert charts.largest_error(video.frames[0], charts.chart()) <= 4


@pytest.mark.parametrize("name", CASES)
def test_pixels_do_not_depend_on_the_vector_instructions_of_a_machine(name: str, lab: Lab) -> None:
    path = lab.write(name, **{**CASES[name], "num_frames": min(10, CASES[name]["num_frames"])})
    here = lab.decoder().decode(path)
    elsewhere = lab.decoder(backends=("tests.media.plain_cpu",)).decode(path)
    assert np.array_equal(here.frames, elsewhere.frames)


@pytest.mark.parametrize(
    ("name", "first", "backend"),
    [("cut.mp4", 33, "pyav"), ("cut.mkv", 20, "decord"), ("cut.ts", 20, "pyav")],
)
def test_a_video_cut_without_reencoding_shows_the_frames_that_its_container_shows(
    name: str, first: int, backend: str, long_video: Path, lab: Lab
) -> None:
    """decord counts 80 frames of ``cut.mp4``, so PyAV decodes it, as each clip records."""
    path = copy_from(long_video, lab.folder / name, 1.3)
    named = lab.decoder(backend="decord").decode(path)
    assert (numbers_of(named.frames), named.backend) == (list(range(first, 100)), backend)
    video = lab.decoder().decode(path)
    assert (numbers_of(video.frames), video.backend) == (list(range(first, 100)), "pyav")
    np.testing.assert_allclose(video.pts_s, np.arange(100 - first) / 25, atol=1e-3)


def test_a_stream_without_its_beginning_starts_at_its_first_whole_frame(lab: Lab) -> None:
    whole = lab.write("whole.ts", 60, gop=20, options={"bf": "0"}).read_bytes()
    packets = [whole[at : at + 188] for at in range(0, len(whole), 188)]
    path = lab.folder / "tail.ts"
    path.write_bytes(b"".join(packets[:3] + packets[len(packets) // 6 :]))
    assert numbers_of(lab.decoder().decode(path).frames) == list(range(20, 60))


def decoded_by_decord(path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Frames from decord, which has its own code for rotation.

    This takes another process, because decord's libvpx would replace the one that encodes here.
    """
    code = (
        "import sys, numpy, decord\n"
        "height, width = map(int, sys.argv[2:4])\n"
        "reader = decord.VideoReader(sys.argv[1], width=width, height=height)\n"
        "numpy.save(sys.argv[4], [reader.next().asnumpy() for _ in range(len(reader))])"
    )
    out = path.with_suffix(".npy")
    arguments = [str(path), *map(str, size), str(out)]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)
    frames: NDArray[np.uint8] = np.load(out)
    return frames


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_rotated_video_is_shown_upright(degrees: int, lab: Lab) -> None:
    path = lab.write("rotated.mp4", 5, rotation=degrees)
    shown = (48, 64) if degrees == 180 else (64, 50)  # decord cannot do 48 columns
    video = lab.decoder(size=shown).decode(path)
    assert video.backend == "pyav"
    for ours, theirs in zip(video.frames, decoded_by_decord(path, shown), strict=True):
        assert np.abs(ours.astype(int) - theirs).mean() < 4


@pytest.mark.parametrize(
    ("name", "codec"), [("change.webm", "libvpx-vp9"), ("change.ts", "libx264")]
)
def test_a_change_of_size_within_a_stream_loses_no_frame(name: str, codec: str, lab: Lab) -> None:
    path = write_size_change(lab.folder / name, codec, 20)
    assert numbers_of(lab.decoder().decode(path).frames) == list(range(20))


@pytest.mark.parametrize(
    ("name", "num_frames", "case"),
    [
        *(("vfr.mp4", 30, "vfr.mp4"), ("av1.mp4", 40, "av1.mp4")),
        *(("open-gop.mkv", 72, "open-gop.mp4"), ("vp9.webm", 72, "vp9-altref.webm")),
        *((name, 72, name) for name in ("open-gop.mp4", "hevc-open-gop.mp4", "fragmented.mp4")),
        *((name, 72, name) for name in ("h264.ts", "h264-b.avi")),
    ],
)
def test_a_span_deep_in_a_video_equals_its_part_of_the_whole(
    name: str, num_frames: int, case: str, lab: Lab
) -> None:
    path = lab.write(name, **{**CASES[case], "num_frames": num_frames})
    decoder = lab.decoder(backend="pyav")
    whole = decoder.decode(path)
    for first in range(0, len(whole.frames) - 3, 4):
        start_s, end_s = whole.pts_s[first], whole.pts_s[first + 3]
        part = decoder.decode(path, start_s=start_s, end_s=end_s)
        assert np.array_equal(part.frames, whole.frames[first : first + 3]), first
        assert np.array_equal(part.pts_s, whole.pts_s[first : first + 3])


def test_resampling_follows_true_times(lab: Lab) -> None:
    pts = [0, 10, 20, 30, 100, 110, 190]  # hundredths of a second
    path = lab.write("gaps.mp4", 7, pts=pts, time_base=Fraction(1, 100))
    video = lab.decoder(fps=10).decode(path)
    expected = [0, 1, 2, 3, 3, 3, 3, 3, 3, 3, 4, 5, 5, 5, 5, 5, 5, 5, 5, 6]
    assert numbers_of(video.frames)[:20] == expected
    assert video.pts_s[:20].tolist() == [pts[number] / 100 for number in expected]


def test_frames_are_fitted_into_the_nearest_bucket(lab: Lab) -> None:
    buckets = ((32, 64), (48, 48), (64, 32))
    wide: dict[str, Any] = {"size": (48, 96)}
    narrow_pixels: dict[str, Any] = {"size": (96, 96), "pixel_aspect": Fraction(1, 2)}
    for bucket, settings in (
        ((32, 64), wide),
        ((48, 48), {"size": (64, 64)}),
        ((64, 32), {**wide, "rotation": 90}),
        ((64, 32), narrow_pixels),
    ):
        path = lab.write("clip.mp4", 3, **settings)
        decoder = lab.decoder(size=None, buckets=buckets, fit="pad")
        assert decoder.decode(path).frames.shape[1:3] == bucket, settings


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (4000, 1), (1, 4000), (16, 12), (8, 4096)])
@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_odd_shapes_are_fitted(size: tuple[int, int], fit: str, lab: Lab) -> None:
    raw: dict[str, Any] = {"codec": "rawvideo", "pix_fmt": "yuv444p"}
    path = lab.write("odd.nut", 2, size=size, first_number=4095, **raw)
    frames = lab.decoder(size=(16, 24), fit=fit).decode(path).frames
    assert frames.shape == (2, 16, 24, 3)
    assert frames[0].max() > 200
    if fit != "pad":
        assert frames[0].min() > 200


def test_shrinking_averages_the_area_that_a_pixel_covers(lab: Lab) -> None:
    """Every other column is white; without antialiasing the result would be all black or white."""
    stripes = np.zeros((64, 128, 3), np.uint8)
    stripes[:, ::2] = 255
    path = encode(lab.folder / "stripes.mkv", [stripes], (64, 128), codec="ffv1", pix_fmt="bgr0")
    frame = lab.decoder(size=(8, 16)).decode(path).frames[0]
    assert np.abs(frame[:, 1:-1].astype(int) - 127).max() < 3  # border columns cover only half
