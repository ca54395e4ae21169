"""Writes frames for people to look at: an MP4 that browsers play, a PNG or a JPEG."""

import os
import uuid
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from tokpipe.storage.local_files import write_file

CRF = 12  # x264's quality: far less loss than any tokenizer, at a tenth of the lossless size


class VideoWriter:
    """Writes an H.264 MP4 of constant frame rate, which appears at its path once it is complete.

    All frames have the size of the first. Use it as a context manager: an exception inside leaves
    no new file, and an existing one untouched.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path = path
        self.rate = Fraction(fps).limit_denominator(60_000)
        self._part = path.with_name(f".{uuid.uuid4().hex}.part")

    def __enter__(self) -> "VideoWriter":
        self._container = av.open(os.fspath(self._part), "w", format="mp4")
        self._stream: av.VideoStream | None = None
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None and self._stream is not None:
                self._container.mux(self._stream.encode(None))
            self._container.close()
            if kind is None:
                self._part.replace(self.path)
        finally:
            self._part.unlink(missing_ok=True)

    def write(self, frames: NDArray[np.uint8]) -> None:
        """Append (T, H, W, 3) RGB frames."""
        if self._stream is None:
            self._stream = self._new_stream(*frames.shape[1:3])
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            self._container.mux(self._stream.encode(frame))

    def _new_stream(self, height: int, width: int) -> av.VideoStream:
        stream = self._container.add_stream("libx264", rate=self.rate)
        stream.width, stream.height = width, height
        # 4:2:0 plays everywhere, but only has even sizes.
        stream.pix_fmt = "yuv420p" if height % 2 == 0 and width % 2 == 0 else "yuv444p"
        stream.options = {"crf": str(CRF)}
        # What swscale converts RGB to: BT.601 (smpte170m) of limited range.
        stream.codec_context.colorspace, stream.codec_context.color_range = 6, 1
        return stream


def write_png(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write one (H, W, 3) RGB picture losslessly; the file appears once it is complete."""
    write_file(path, _encoded(picture, "png", "rgb24", {}))


def jpeg_bytes(picture: NDArray[np.uint8]) -> bytes:
    """Return one (H, W, 3) RGB picture as a JPEG of the best quality, in 4:4:4."""
    return _encoded(picture, "mjpeg", "yuvj444p", {"qmin": "1", "qmax": "2"})


def _encoded(
    picture: NDArray[np.uint8], codec_name: str, pix_fmt: str, options: dict[str, str]
) -> bytes:
    codec = av.CodecContext.create(codec_name, "w")
    assert isinstance(codec, av.VideoCodecContext)
    codec.height, codec.width, _ = picture.shape
    codec.pix_fmt, codec.time_base, codec.options = pix_fmt, Fraction(1), options
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    frame = frame.reformat(format=pix_fmt)
    frame.pts = 0
    return b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)])


class FrameGrid:
    """Lays out evenly spaced frames of a clip in rows of ``columns``.

    Keeps at most ``num_frames`` of the ``total`` frames that follow, so memory does not grow with
    the clip.
    """

    def __init__(self, total: int, num_frames: int, columns: int) -> None:
        count = min(total, num_frames)
        self._wanted = {round(i * (total - 1) / max(1, count - 1)) for i in range(count)}
        self._columns = min(columns, len(self._wanted))
        self._seen = 0
        self._kept: list[NDArray[np.uint8]] = []

    def add(self, frames: NDArray[np.uint8]) -> None:
        """Take the next (T, H, W, 3) frames of the clip."""
        for index, picture in enumerate(frames, start=self._seen):
            if index in self._wanted:
                self._kept.append(picture.copy())
        self._seen += len(frames)

    def picture(self) -> NDArray[np.uint8]:
        """Return (rows * H, columns * W, 3); places without a frame are black."""
        height, width, _ = self._kept[0].shape
        num_rows = -(-len(self._kept) // self._columns)
        cells = np.zeros((num_rows * self._columns, height, width, 3), np.uint8)
        cells[: len(self._kept)] = self._kept
        rows = cells.reshape(num_rows, self._columns, height, width, 3).swapaxes(1, 2)
        return rows.reshape(num_rows * height, self._columns * width, 3)
