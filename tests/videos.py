"""Makes small videos. Numbered ones show in each frame which frame it is."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
"""(H, W, 3) RGB."""

ROWS, COLUMNS = 3, 4  # cells of one bit each: numbers up to 4095

FASTSTART: dict[str, Any] = {"container_options": {"movflags": "faststart"}}
FRAGMENTED: dict[str, Any] = {"container_options": {"movflags": "frag_keyframe+empty_moov"}}
QUIET_X265 = "log-level=none:pools=1"
HEVC: dict[str, Any] = {"codec": "libx265", "options": {"x265-params": QUIET_X265}}
FAST_VP = {"deadline": "realtime", "cpu-used": "8"}
VP9: dict[str, Any] = {"codec": "libvpx-vp9", "options": FAST_VP}


def numbered(number: int, height: int, width: int) -> Picture:
    """Draw ``number`` in black and white cells."""
    bits = [(number >> bit) & 1 for bit in range(ROWS * COLUMNS)]
    rows = np.arange(height) * ROWS // height
    columns = np.arange(width) * COLUMNS // width
    grey = np.array(bits, np.uint8).reshape(ROWS, COLUMNS)[np.ix_(rows, columns)] * 200 + 25
    return np.repeat(grey[..., None], 3, axis=2)


def number_of(frame: Picture) -> int:
    """Read the number that ``numbered`` drew, after coding and resizing."""
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
    first_number: int = 0,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    **settings: Any,
) -> Path:
    """Encode ``num_frames`` numbered pictures of ``size`` (height, width); see ``encode``."""
    pictures = (numbered(first_number + index, *size) for index in range(num_frames))
    if codec == "libx264":
        options = {"crf": "12", "preset": "ultrafast", "bf": "2", **(options or {})}
    return encode(path, pictures, size, codec=codec, options=options, **settings)


@dataclass(frozen=True)
class VideoFolder:
    """A folder for the videos of one test."""

    folder: Path

    def write(self, name: str, num_frames: int, **settings: Any) -> Path:
        return write_video(self.folder / name, num_frames, **settings)


def encode(
    path: Path,
    pictures: Iterable[Picture],
    size: tuple[int, int],
    *,
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
    audio: bool = False,
) -> Path:
    """Encode pictures of ``size``; ``pts`` are in units of ``time_base`` (default: one frame)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt
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
        container.start_encoding()
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=pix_fmt)
            frame.pts = index if pts is None else pts[index]
            frame.time_base = unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            _add_silence(container, sound)
    return path


def write_silence(path: Path) -> Path:
    """A file with sound and no video."""
    with av.open(str(path), "w") as container:
        _add_silence(container, container.add_stream("aac", rate=16_000))
    return path


def write_cover_art(path: Path, jpeg: bytes) -> Path:
    """A file with sound and its cover."""
    with av.open(str(path), "w", format="mp4") as container:
        cover: Any = container.add_stream("mjpeg")
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        sound = container.add_stream("aac", rate=16_000)
        container.start_encoding()
        packet = av.Packet(jpeg)
        packet.stream, packet.pts, packet.dts, packet.is_keyframe = cover, 0, 0, True
        container.mux(packet)
        _add_silence(container, sound)
    return path


def _add_silence(container: Any, stream: Any) -> None:
    for index in range(8):
        block = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", layout="mono")
        block.pts, block.rate = index * 1024, 16_000
        container.mux(stream.encode(block))
    container.mux(stream.encode(None))


def copy_from(source: Path, target: Path, start_s: float) -> Path:
    """Copy packets from the key frame before ``start_s`` on, as ``ffmpeg -ss S -c copy`` does.

    Times start at ``start_s``, so frames before it have negative times: MP4 hides them with an
    edit list, and other containers show them.
    """
    with av.open(str(source)) as before, av.open(str(target), "w") as after:
        stream = before.streams.video[0]
        copy = after.add_stream_from_template(stream)
        offset = round(start_s / stream.time_base)
        before.seek(offset, stream=stream, backward=True)
        for packet in before.demux(stream):
            if packet.dts is not None:
                packet.pts -= offset
                packet.dts -= offset
                packet.stream = copy
                after.mux(packet)
    return target


def remux(
    source: Path,
    target: Path,
    shift_s: Sequence[float] = (0, 0),
    kept: Iterable[int] | None = None,
) -> Path:
    """Copy packets (default: all of them), adding to the times of each stream."""
    keep = None if kept is None else set(kept)
    with av.open(str(source)) as before, av.open(str(target), "w") as after:
        copies = [after.add_stream_from_template(stream) for stream in before.streams]
        for number, packet in enumerate(one for one in before.demux() if one.size):
            if keep is not None and number not in keep:
                continue
            shift = round(shift_s[packet.stream_index] / packet.time_base)
            packet.pts += shift
            packet.dts = packet.pts if packet.dts is None else packet.dts + shift
            packet.stream = copies[packet.stream_index]
            after.mux(packet)
    return target


def write_size_change(path: Path, codec: str, num_frames: int) -> Path:
    """Numbered pictures whose size changes halfway through the stream."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        half = num_frames // 2
        for first, (width, height) in ((0, (64, 48)), (half, (96, 96))):
            encoder: Any = av.CodecContext.create(codec, "w")
            encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
            encoder.time_base, encoder.framerate = Fraction(1, 25), Fraction(25)
            encoder.bit_rate = 2_000_000
            encoder.max_b_frames = 0
            encoder.options = {"deadline": "realtime"} if "vp" in codec else {}
            for index in [*range(first, first + half), None]:
                frame = None
                if index is not None:
                    picture = numbered(index, height, width)
                    frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="yuv420p")
                    frame.pts, frame.time_base = index, Fraction(1, 25)
                for packet in encoder.encode(frame):
                    packet.stream = stream
                    container.mux(packet)
    return path


# Damage.


class Packet(NamedTuple):
    """Where a video packet is in its file, and its bytes."""

    position: int
    data: bytes


def packets_of(path: Path) -> list[Packet]:
    """The video packets of a file, in decoding order."""
    with av.open(str(path)) as container:
        return [Packet(one.pos, bytes(one)) for one in container.demux(video=0) if one.size]


def cut_short(path: Path, num_packets: int, *, inside: bool) -> None:
    """End a file after ``num_packets`` packets, or in the middle of the packet that follows."""
    position, data = sorted(packets_of(path))[num_packets]
    path.write_bytes(path.read_bytes()[: position + inside * (len(data) // 2)])


def spoil_packet(path: Path, number: int, kept: int = 0) -> None:
    """Overwrite one packet after its first bytes. decord repeats another frame in its place."""
    position, data = packets_of(path)[number]
    whole = path.read_bytes()
    at, end = whole.index(data, max(0, position)) + kept, len(data) - kept
    path.write_bytes(whole[:at] + b"\xff" * end + whole[at + end :])


def spoil_end(path: Path) -> Path:
    """Overwrite some of the last frames of an MP4, about which FFmpeg complains at length."""
    whole = path.read_bytes()
    at = whole.index(b"moov") - 150
    path.write_bytes(whole[:at] + b"\xff" * 100 + whole[at + 100 :])
    return path
