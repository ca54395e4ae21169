"""Writes frames for people to look at: an MP4 that browsers play, a PNG or a JPEG."""

import os
import uuid
from collections.abc import Iterable
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from tokpipe.media.quality import Frames
from tokpipe.storage.local_files import write_file

CRF = 12  # x264's quality: far less loss than any tokenizer, at a tenth of the lossless size


def write_video(path: Path, fps: float, blocks: Iterable[Frames]) -> None:
    """Write blocks of (T, H, W, 3) frames to an H.264 MP4 of constant frame rate. Frames have the
    size of the first. An error leaves no new file, and an existing one untouched."""
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with av.open(os.fspath(part), "w", format="mp4") as container:
            stream: av.VideoStream | None = None
            for picture in chain.from_iterable(blocks):
                stream = stream or _new_stream(container, fps, *picture.shape[:2])
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                container.mux(stream.encode(frame))
            if stream is not None:
                container.mux(stream.encode(None))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _new_stream(
    container: av.container.OutputContainer, fps: float, height: int, width: int
) -> av.VideoStream:
    stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(60_000))
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


def frame_grid(
    blocks: Iterable[Frames], total: int, num_frames: int, columns: int
) -> NDArray[np.uint8]:
    """Lay out ``num_frames`` of ``total`` frames, evenly spaced, in rows of ``columns``: (rows * H,
    columns * W, 3), black without a frame. Memory does not grow with the clip."""
    count = min(total, num_frames)
    wanted = {round(i * (total - 1) / max(1, count - 1)) for i in range(count)}
    frames = enumerate(chain.from_iterable(blocks))
    kept = [picture.copy() for index, picture in frames if index in wanted]
    height, width, _ = kept[0].shape
    columns = min(columns, len(wanted))
    num_rows = -(-len(kept) // columns)
    cells = np.zeros((num_rows * columns, height, width, 3), np.uint8)
    cells[: len(kept)] = kept
    rows = cells.reshape(num_rows, columns, height, width, 3).swapaxes(1, 2)
    return rows.reshape(num_rows * height, columns * width, 3)
