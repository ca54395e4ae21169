"""Any file decodes to the right frames, or is rejected for a known reason."""

import os
import random
import re
import socket
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.media.conftest import FORMATS, Lab
from tests.videos import FASTSTART, cut_short, numbers_of, write_silence, write_video
from tokpipe.errors import SourceError
from tokpipe.media.decoder import Video, VideoDecoder

REASONS = {
    "access_denied", "changed", "corrupt", "crashed", "empty", "gap", "missing", "no_video",
    "not_a_file", "not_a_video", "timeout", "too_large", "too_many_pixels", "too_short",
    "truncated", "unsupported",
}  # fmt: skip


def outcome(decoder: VideoDecoder, path: Path) -> Video | SourceError:
    """A video, or a rejection with a known reason and a readable message."""
    try:
        return decoder.decode(path)
    except SourceError as error:
        rejected = error
    assert rejected.reason in REASONS
    assert len(str(rejected)) > 20
    return rejected


def rejection(decoder: VideoDecoder, path: Path) -> SourceError:
    result = outcome(decoder, path)
    assert isinstance(result, SourceError)
    return result


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


UNUSABLE: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "nothing": ("missing", "does not exist", lambda path: None),
    "dangling link": ("missing", "link to nothing", lambda path: path.symlink_to("gone")),
    "directory": ("not_a_file", "but drw", Path.mkdir),
    "pipe": ("not_a_file", "but prw", os.mkfifo),
    "socket": ("not_a_file", "but srw", _socket),
    "link to a device": ("not_a_file", "but crw", lambda path: path.symlink_to("/dev/zero")),
    "empty file": ("empty", "0 bytes", Path.touch),
    "zeros": ("not_a_video", "no video container", lambda path: path.write_bytes(bytes(99_999))),
    "text": ("not_a_video", "no video container", lambda path: path.write_text("a\n" * 9999)),
    "random bytes": (
        "not_a_video", "no video container",
        lambda path: path.write_bytes(random.Random(0).randbytes(99_999)),
    ),
    "ftyp alone": (
        "truncated", "cut short",
        lambda path: path.write_bytes(b"\0\0\0\x18ftypisom\0\0\x02\0isomiso2"),
    ),
    "playlist of other files": (
        "not_a_video", "no video container",
        lambda path: path.write_text("#EXTM3U\n#EXTINF:1,\n/etc/hostname\n#EXT-X-ENDLIST\n"),
    ),
    "script of other files": (
        "not_a_video", "no video container",
        lambda path: path.write_text("ffconcat version 1.0\nfile other.mp4\n"),
    ),
    "sound": ("no_video", r"no video stream \(its streams: audio\)", write_silence),
    "end between packets": (
        "truncated", "10 of 30 packets",
        lambda path: cut_short(write_video(path, 30, **FASTSTART), 20, inside=False),
    ),
    "frame that lasts for hours": (
        "corrupt", "one frame lasts 5000 s",
        lambda path: write_video(path, 3, pts=[0, 1, 25 * 5000]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_unusable_file_is_rejected_with_its_reason(name: str, lab: Lab) -> None:
    reason, message, make = UNUSABLE[name]
    path = lab.folder / "clip.mp4"
    make(path)
    error = rejection(lab.decoder(), path)
    assert error.reason == reason
    assert re.search(message, str(error))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_rejected(lab: Lab) -> None:
    path = lab.write("clip.mp4", 3)
    path.chmod(0)
    assert rejection(lab.decoder(), path).reason == "access_denied"


def test_a_span_with_too_few_frames_is_rejected(lab: Lab) -> None:
    path = lab.write("clip.mp4", 10)
    decoder = lab.decoder(min_clip_frames=5)
    assert len(decoder.decode(path, start_s=0.2).frames) == 5
    with pytest.raises(SourceError, match=r"has 4 frames of a video of 0\.400 s") as caught:
        decoder.decode(path, start_s=0.24)
    assert caught.value.reason == "too_short"
    with pytest.raises(SourceError, match="the span has 0 frames"):
        lab.decoder().decode(path, start_s=7)


def test_a_source_that_changed_is_rejected(lab: Lab) -> None:
    path = lab.write("clip.mp4", 10)
    with pytest.raises(SourceError, match="now has 3 clips and had 2") as caught:
        lab.decoder(max_clip_frames=4).decode(path, segment=1, num_segments=2)
    assert caught.value.reason == "changed"


@pytest.mark.parametrize("name", FORMATS)
def test_a_truncated_file_yields_its_first_frames_or_a_reason(name: str, lab: Lab) -> None:
    whole = lab.write(name, 60, **FORMATS[name]).read_bytes()
    path = lab.folder / f"cut-{name}"
    for percent in (1, 5, 10, 25, 40, 50, 60, 75, 90, 97):
        path.write_bytes(whole[: len(whole) * percent // 100])
        result = outcome(lab.decoder(), path)
        if isinstance(result, Video):
            numbers = numbers_of(result.frames)
            assert numbers == np.rint(result.pts_s * 25).tolist(), percent
            # Other containers do not list how many frames there should be.
            assert numbers == list(range(60)) or not name.startswith("index"), percent


@pytest.mark.parametrize("name", FORMATS)
def test_flipped_bits_yield_every_frame_or_a_reason(name: str, lab: Lab) -> None:
    """Damage that the codec cannot notice may change pixels but never loses or repeats a frame."""
    path = lab.write(name, 20, **FORMATS[name])
    whole = path.read_bytes()
    clean = lab.decoder().decode(path)
    rng = random.Random(5)
    decoded = 0
    for _ in range(25):
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 1, 5])):
            damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        result = outcome(lab.decoder(), path)
        again = outcome(lab.decoder(), path)
        assert type(result) is type(again)
        if isinstance(result, Video) and isinstance(again, Video):
            decoded += 1
            assert np.array_equal(result.frames, again.frames)
            assert np.all(np.diff(result.pts_s) > 0)
            assert result.frames.shape[1:] == clean.frames.shape[1:]
    assert decoded > 0


def test_wrong_dimensions_in_the_container_are_ignored(lab: Lab) -> None:
    path = lab.write("clip.mp4", 5)
    whole = path.read_bytes()
    # Width and height in the sample description; the first "avc1" of the file is only a brand.
    at = whole.index(b"avc1", whole.index(b"stsd")) + 28
    path.write_bytes(whole[:at] + b"\xff\xff\xff\xff" + whole[at + 4 :])
    video = lab.decoder().decode(path)  # the header of the stream decides
    assert numbers_of(video.frames) == list(range(5))


def test_a_video_too_large_for_the_child_is_rejected_and_the_next_one_decoded(lab: Lab) -> None:
    decoder = lab.decoder(memory_bytes=256 * 2**20)
    settings: dict[str, Any] = {"size": (8000, 8000), "codec": "mjpeg", "pix_fmt": "yuvj444p"}
    huge = lab.write("huge.mkv", 1, **settings)
    assert rejection(decoder, huge).reason in {"too_large", "no_video"}
    assert len(decoder.decode(lab.write("clip.mp4", 3)).frames) == 3


def _gif(side: int) -> bytes:
    """Three frames of one colour. FFmpeg takes 3 GB to decode 16,200 x 16,200 of its pixels."""
    size = side.to_bytes(2, "little") * 2
    frame = b"\x21\xf9\x04\0\x0a\0\0\0\x2c\0\0\0\0" + size + b"\0\2\2\x4c\1\0"
    return b"GIF89a" + size + b"\x80\0\0\0\0\0\xff\xff\xff" + frame * 3 + b";"


def _apng(side: int) -> bytes:
    size = side.to_bytes(4, "big") * 2
    chunks = [
        *((b"IHDR", size + b"\x08\2\0\0\0"), (b"acTL", b"\0\0\0\2\0\0\0\0")),
        *((b"fcTL", bytes(4) + size + bytes(8) + b"\0\1\0\x08\0\0"), (b"IDAT", b"")),
        (b"IEND", b""),
    ]
    parts = (
        len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")
        for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _jpegs(lab: Lab, first: int) -> bytes:
    """A video whose frames grow to 65,535 x 65,535 pixels at frame ``first``."""
    start = b"\xff\xc0\0\x11\x08"
    whole = lab.write("clip.avi", 6, codec="mjpeg", pix_fmt="yuvj420p").read_bytes()
    before, *frames = whole.split(start)
    grown = (b"\xff" * 4 + one[4:] if i >= first else one for i, one in enumerate(frames))
    return start.join([before, *grown])


@pytest.mark.parametrize("name", ["gif", "wide gif", "png", "avi", "later.avi"])
def test_a_frame_of_too_many_pixels_is_rejected_before_it_takes_memory(name: str, lab: Lab) -> None:
    """A limit of 256 MiB, of which a frame within FFmpeg's own limit would take all."""
    make: dict[str, Callable[[], bytes]] = {
        "gif": lambda: _gif(16_200),
        "wide gif": lambda: _gif(65_535),
        "png": lambda: _apng(16_200),
        "avi": lambda: _jpegs(lab, 0),
        "later.avi": lambda: _jpegs(lab, 3),
    }
    decoder = lab.decoder(memory_bytes=256 * 2**20)
    path = lab.folder / f"huge.{name.split()[-1]}"
    path.write_bytes(make[name]())
    for ask in (decoder.probe, decoder.decode):
        with pytest.raises(SourceError, match=r"frame claims to be \d+x\d+ in size") as caught:
            ask(path)
        assert caught.value.reason == "too_many_pixels"
    assert len(decoder.decode(lab.write("clip.mp4", 3)).frames) == 3
