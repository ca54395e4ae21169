"""Small videos whose pixels say which frame they are."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

ROWS, COLUMNS = 3, 4  # cells of one bit each: numbers up to 4095


def numbered(number: int, height: int, width: int) -> NDArray[np.uint8]:
    """An (H, W, 3) picture that spells ``number`` in black and white cells."""
    bits = [(number >> bit) & 1 for bit in range(ROWS * COLUMNS)]
    rows = np.arange(height) * ROWS // height
    columns = np.arange(width) * COLUMNS // width
    grey = np.array(bits, np.uint8).reshape(ROWS, COLUMNS)[np.ix_(rows, columns)] * 200 + 25
    return np.repeat(grey[..., None], 3, axis=2)


def number_of(frame: NDArray[np.uint8]) -> int:
    """Read the number of a picture that ``numbered`` drew, after coding and resizing."""
    height, width = frame.shape[:2]
    number = 0
    for bit in range(ROWS * COLUMNS):
        row, column = divmod(bit, COLUMNS)
        y = int((row + 0.5) * height / ROWS)
        x = int((column + 0.5) * width / COLUMNS)
        number |= int(frame[y, x].mean() > 125) << bit
    return number


def numbers_of(frames: NDArray[np.uint8]) -> list[int]:
    return [number_of(frame) for frame in frames]


def write_video(
    path: Path,
    num_frames: int,
    *,
    size: tuple[int, int] = (48, 64),
    codec: str = "libx264",
    fps: Fraction | int = 25,
    pix_fmt: str = "yuv420p",
    gop: int = 8,
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    rotation: int = 0,
    pixel_aspect: Fraction | None = None,
    first_number: int = 0,
    sizes: Sequence[tuple[int, int]] | None = None,
    audio: bool = False,
) -> Path:
    """Encode ``num_frames`` numbered pictures; ``size`` is (height, width).

    ``pts`` are in units of ``time_base`` (default: one frame of ``fps``).
    """
    height, width = size
    settings = {"libx264": {"crf": "12", "preset": "ultrafast", "bf": "2"}}.get(codec, {})
    settings = {**settings, **(options or {})}
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps, options=settings)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.gop_size = gop
        stream.codec_context.thread_count = 1
        unit = time_base or 1 / Fraction(fps)
        stream.time_base = stream.codec_context.time_base = unit
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if rotation:
            stream.set_display_rotation(rotation)
        if codec in ("mpeg4", "mpeg2video", "libvpx", "libvpx-vp9", "mjpeg"):
            stream.codec_context.bit_rate = 2_000_000
        sound = container.add_stream("aac", rate=16_000) if audio else None
        for index in range(num_frames):
            picture = numbered(first_number + index, height, width)
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=pix_fmt)
            frame.pts = index if pts is None else pts[index]
            frame.time_base = unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            for index in range(8):
                block = av.AudioFrame.from_ndarray(
                    np.zeros((1, 1024), np.float32), "fltp", layout="mono"
                )
                block.pts, block.rate = index * 1024, 16_000
                container.mux(sound.encode(block))
            container.mux(sound.encode(None))
    return path
