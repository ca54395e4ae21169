"""Videos to decode: Big Buck Bunny in several codecs and sizes, at plausible bitrates."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

import tokpipe

SOURCE = Path(tokpipe.__file__).parents[1] / "examples" / "data" / "bigbuckbunny.mp4"
"""Real motion and texture: 5 s of 720p, from a checkout of the repository."""

FPS = 25
KEY_FRAME_EVERY = 50
"""Frames. What video sites use: a key frame every few seconds."""

# Encoder, its options, and the container that the codec mostly comes in. One thread each, so that
# the same bytes come out every time. Fast presets, for it is decoding that is measured.
_CODECS: dict[str, tuple[str, dict[str, str], str]] = {
    "h264": ("libx264", {"preset": "veryfast", "crf": "23", "bf": "2"}, ".mp4"),
    "hevc": (
        "libx265",
        {
            "preset": "superfast",
            "crf": "26",
            "x265-params": "log-level=none:pools=none:frame-threads=1:bframes=2",
        },
        ".mp4",
    ),
    "vp9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "crf": "33"}, ".webm"),
    "av1": ("libsvtav1", {"preset": "11", "crf": "35", "svtav1-params": "lp=1"}, ".mp4"),
}
CODECS = tuple(_CODECS)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A file, and what is known about it without opening it."""

    path: Path
    codec: str
    height: int
    width: int
    num_frames: int

    @property
    def kbit_per_s(self) -> int:
        return round(self.path.stat().st_size * 8 * FPS / self.num_frames / 1000)


def has_encoder(codec: str) -> bool:
    return _CODECS[codec][0] in av.codecs_available


def encode(codec: str, height: int, num_frames: int, folder: Path) -> Encoded:
    """Encode ``num_frames`` frames of 16:9, repeating the source as often as needed."""
    encoder, options, suffix = _CODECS[codec]
    width = round(height * 16 / 9 / 2) * 2
    path = folder / f"{codec}-{height}{suffix}"
    os.environ.setdefault("SVT_LOG", "1")  # it prints a page about each file otherwise
    with av.open(os.fspath(path), "w") as container:
        stream: Any = container.add_stream(encoder, rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.colorspace = av.video.reformatter.Colorspace.ITU709
        stream.codec_context.gop_size = KEY_FRAME_EVERY
        stream.codec_context.thread_count = 1
        for index, picture in enumerate(pictures(num_frames)):
            frame = picture.reformat(width, height, "yuv420p", interpolation="BICUBIC", threads=1)
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            frame.pict_type = av.video.frame.PictureType.NONE  # the source's key frames are its own
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return Encoded(path, codec, height, width, num_frames)


def pictures(num_frames: int) -> Iterator[Any]:
    """Frames of the source, again and again."""
    left = num_frames
    while left:
        with av.open(os.fspath(SOURCE)) as container:
            for frame in container.decode(video=0):
                yield frame
                left -= 1
                if not left:
                    return
