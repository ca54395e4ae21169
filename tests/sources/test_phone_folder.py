"""A folder as it comes from phones and cameras: every video is found, decoded and tokenized."""

import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.jobs import output_of, run_without_ray, write_job
from tests.sources.reading import read, uris
from tests.videos import VP9, write_video
from tokpipe.cli import main
from tokpipe.config import load_job
from tokpipe.config.sources import VIDEO_EXTENSIONS
from tokpipe.formats import job_record
from tokpipe.media.container import open_video
from tokpipe.plan import StoredPlan

VIDEOS = [
    *("IMG_0001.MOV", "IMG_0002.mov", "IMG_0003.Mov", "IMG_E0001.MP4", "VID_20240701_101500.mp4"),
    *("PXL_20240701.LS.mp4", "clip.m4v", "CLIP2.M4V", "screen.webm", "Screen 2.WEBM", "film.mkv"),
    *("Film (Kopie).MKV", "old camera.avi", "DSCN0001.AVI", "stream.ts", "STREAM2.TS"),
    *("DCIM/100GOPRO/GH010001.MP4", "DCIM/101APPLE/IMG_0004.MOV", "PRIVATE/AVCHD/BDMV/00000.MTS"),
    *("-dash.mp4", "[2024] Öresund.mkv", unicodedata.normalize("NFD", "Übung/Café.mov")),
    *("日本/動画 ①.mp4", "WhatsApp Video.3GP", "emoji 🎬.MPG"),
]
BESIDE = [
    *("._IMG_0001.MOV", ".DS_Store", "DCIM/100GOPRO/GH010001.THM", "DCIM/100GOPRO/GL010001.LRV"),
    *("IMG_0005.HEIC", "IMG_0006.JPG", "IMG_0001.AAE", "notes"),
]
WRITERS: dict[str, dict[str, Any]] = {
    "webm": VP9,
    "ivf": VP9,
    "ogv": {"codec": "libvpx"},
    "gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "y4m": {"codec": "rawvideo"},
    "flv": {"codec": "flv"},
    "rm": {"codec": "rv10"},
    "obu": {"codec": "libsvtav1"},
    "dv": {"codec": "dvvideo", "size": (576, 720)},
    "m1v": {"codec": "mpeg1video"},
    **{key: {"codec": "mpeg2video"} for key in ("mpg", "mpeg", "m2v", "vob", "mxf", "wtv")},
    **{key: {"codec": "msmpeg4v3"} for key in ("wmv", "asf")},
    **{key: {"codec": "mpeg4"} for key in ("3gp", "3g2")},
}
SAME = {
    "qt": "mov",
    "3gpp": "3gp",
    "insv": "mp4",
    "mk3d": "mkv",
    "divx": "avi",
    "ogm": "ogv",
    "rmvb": "rm",
    "tod": "ts",
    "m2t": "ts",
    "mpe": "mpg",
    "mod": "mpg",
    "avc": "h264",
    "h265": "hevc",
    "265": "hevc",
}
"""Extensions that FFmpeg has no writer for, and those of the same container."""


def write_any(path: Path, seed: int = 0) -> None:
    """Write a video in the container that a name stands for."""
    extension = path.suffix[1:].lower()
    extension = SAME.get(extension, extension)
    settings = WRITERS.get(extension, {})
    if extension == "hevc":
        settings = {"codec": "libx265", "options": {"x265-params": "log-level=none:pools=1"}}
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f"made.{extension}")
    shutil.move(write_video(made, 6, first_number=seed, **settings), path)


def test_a_phone_and_camera_folder_is_tokenized_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(VIDEOS) == 25
    folder = tmp_path / "my [2024] videos"
    for seed, name in enumerate(VIDEOS):
        write_any(folder / name, seed)
    for name in BESIDE:
        (folder / name).write_bytes(b"Mac OS X")
    (folder / "link.mp4").symlink_to("IMG_E0001.MP4")
    (folder / "DCIM/again").symlink_to("..")
    found = sorted([*VIDEOS, "link.mp4"], key=lambda name: name.encode())

    path = tmp_path / "jobs/mine.yaml"
    sampling = {"fps": None, "max_clip_frames": 9}
    source = {"kind": "files", "uri": "my [2024] videos/"}
    job = write_job(path, source, "my [2024] videos/out", sampling=sampling)
    assert main(["check", str(job)]) == 0
    assert "left out: 8 files: 2 hidden (.DS_Store, ._IMG_0001.MOV)" in capsys.readouterr().out
    run_without_ray(load_job(job))
    output = output_of(job)
    assert not list(output.rejected())
    clips = {clip.source_uri for clip in output.clips()}
    assert clips == {str(folder / name) for name in found}
    left_out = StoredPlan.from_json(job_record.read(output.store).plan).left_out
    kinds = [".aae", ".heic", ".jpg", ".lrv", ".thm", "without an extension"]
    assert left_out.counts == {"hidden": 2, "looping link": 1, **dict.fromkeys(kinds, 1)}


@pytest.mark.parametrize("extension", VIDEO_EXTENSIONS)
def test_the_decoder_opens_what_each_extension_stands_for(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"video.{extension.upper()}"
    write_any(path)
    with open_video(path) as (_, stream):
        assert stream.type == "video"
    assert uris(read("files", tmp_path)) == [str(path)]
