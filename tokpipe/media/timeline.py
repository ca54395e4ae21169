"""When each frame of a video is on screen, found without decoding wherever possible."""

import contextlib
import statistics
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from tokpipe.errors import SourceError
from tokpipe.media.colour import Tags, tags_of
from tokpipe.media.container import damaged, decoder_of, open_video, read_crop
from tokpipe.media.geometry import Crop, Orientation, orientation_of

# Containers that store a presentation time per frame, and codecs in which a packet is one shown
# frame. Elsewhere (decoding times only, fields, hidden frames in separate packets, packed
# B-frames) packets do not determine the frames, which are counted by decoding them.
_TIMED_FORMATS = frozenset({"mov", "matroska", "mpegts", "flv"})
_PLAIN_CODECS = frozenset({"h264", "hevc", "vp9", "av1"})
# Indexed containers, in which seeking reaches exactly the requested key frame.
_SEEKABLE_FORMATS = frozenset({"mov", "matroska"})

MAX_GAP_S = 3600.0
"""A longer frame is a damaged timestamp: one flipped bit could ask for a billion frames."""


class Packet(NamedTuple):
    """One packet of the video stream, with times in units of the stream."""

    pts: int
    dts: int | None
    duration: int
    is_key: bool
    is_shown: bool
    has_pts: bool


@dataclass(frozen=True, slots=True)
class Timeline:
    """The frames that a player shows, in order, and what they look like.

    Time zero is the first shown frame. Frames hidden by an edit list are left out.
    """

    times_s: NDArray[np.float64]
    """(N,) presentation times, strictly increasing from 0."""
    end_s: float
    """When the last frame leaves the screen."""
    tick_s: float
    """Resolution of the times."""
    pts: tuple[int, ...] | None
    """The same times in units of the stream; None where decoded frames do not carry them."""
    key_frames: tuple[Packet, ...]
    """Where decoding may start, increasing; empty where seeking is unreliable."""
    from_packets: bool
    """Whether the packets list the frames; otherwise they were counted by decoding."""
    height: int
    width: int
    """Size of the first frame without what the container hides: before rotation, in pixels that
    may not be square."""
    pixel_aspect: Fraction
    """Width of a coded pixel over its height."""
    orientation: Orientation
    crop: Crop
    tags: Tags
    """Of the first frame."""
    format: str
    codec: str
    num_video_streams: int
    damage: str | None = None
    """What is missing from a damaged file that is used nevertheless."""

    def __len__(self) -> int:
        return len(self.times_s)

    @property
    def average_fps(self) -> float:
        return len(self) / self.end_s


def read_timeline(path: Path, *, salvage: bool = False) -> Timeline:
    """Read the presentation times of a video from its packets, decoding only the first frame.

    With ``salvage``, a file that was cut short keeps its whole frames before the cut, and
    ``Timeline.damage`` says what is missing. The same file always has the same timeline.

    Raises:
        SourceError: the file is not a video, has no frames, or was cut short.
    """
    with open_video(path) as (container, stream):
        packets, first, damage = _read_packets(container, stream)
        name = container.format.name.split(",")[0]
        if name == "mov" and (missing := len(stream.index_entries) - len(packets)) > 0:
            damage = damage or SourceError(
                "truncated",
                f"the file ends {missing} of {len(stream.index_entries)} packets before the end "
                "that its index lists",
            )
        if damage is not None and not salvage:
            raise damage
        codec = stream.codec_context.codec.canonical_name
        trusted = name in _TIMED_FORMATS and codec in _PLAIN_CODECS and _are_frames(packets)
        key_frames: tuple[Packet, ...] = ()
        if trusted:
            # A lost packet is shown no earlier than it is decoded, so whatever is shown after the
            # last packet was decoded may have a gap before it.
            last = packets[-1].dts if damage is not None else None
            shown = (one.pts for one in packets if one.is_shown)
            pts = sorted(value for value in shown if last is None or value <= last)
            if name in _SEEKABLE_FORMATS:
                starts = (one for one in packets if one.is_key and one.dts is not None)
                key_frames = tuple(sorted(starts, key=lambda packet: packet.pts))
            durations = {packet.pts: packet.duration for packet in packets}
        unit, rate = stream.time_base, stream.average_rate or stream.guessed_rate
        aspect = stream.sample_aspect_ratio
        num_video_streams = len(container.streams.video)
        crop = read_crop(container, stream)
    if not trusted:
        pts, durations, stopped = _times_by_decoding(path)
        if stopped is not None and not (salvage and pts):
            raise stopped
        damage = damage or stopped
    if not pts or first is None:
        raise damage or SourceError("no_video", "the video stream has no frame that can be decoded")
    has_pts = all(earlier < later for earlier, later in pairwise(pts))
    if has_pts:
        # Integers with one rounding each: the same values as fractions, but much faster.
        times_s = np.array(
            [(value - pts[0]) * unit.numerator / unit.denominator for value in pts], np.float64
        )
        last_s = _last_duration_s(pts, durations.get(pts[-1]) or 0, unit, rate)
    else:
        # The file stores decoding times (AVI with B-frames). The order of the frames is right, and
        # such files have a constant rate.
        last_s = 1 / float(rate or 25)
        times_s = np.arange(len(pts), dtype=np.float64) / float(rate or 25)
    end_s = float(times_s[-1]) + last_s
    longest = float(np.diff(times_s, append=end_s).max())
    if longest > MAX_GAP_S:
        raise SourceError(
            "corrupt",
            f"one frame lasts {longest:.0f} s by its timestamps, more than {MAX_GAP_S:.0f} s: "
            "they are damaged",
        )
    orientation = Orientation()
    if (matrix := first.side_data.get("DISPLAYMATRIX")) is not None:
        orientation = orientation_of(np.frombuffer(bytes(matrix), np.int32).tolist())
    crop = crop.within(first.height, first.width)
    height, width = crop.kept(first.height, first.width)
    if name == "mov" and aspect == Fraction(first.height * width, first.width * height):
        # FFmpeg compares the size in which a track is shown with what is coded, not with the rest.
        aspect = None
    return Timeline(
        times_s=times_s,
        end_s=end_s,
        tick_s=float(unit) if has_pts else 0.0,
        pts=tuple(pts) if has_pts else None,
        key_frames=key_frames,
        from_packets=trusted,
        height=height,
        width=width,
        # Unset, or beyond any real format.
        pixel_aspect=Fraction(aspect if aspect and Fraction(1, 8) <= aspect <= 8 else 1),
        orientation=orientation,
        crop=crop,
        tags=tags_of(first),
        format=name,
        codec=codec,
        num_video_streams=num_video_streams,
        damage=None if damage is None else str(damage),
    )


def _read_packets(container: Any, stream: Any) -> tuple[list[Packet], Any, SourceError | None]:
    """Read every whole packet of the stream, decoding until one frame is seen.

    Returns:
        The packets, the frame, and what is wrong with the file if it was cut short.
    """
    packets: list[Packet] = []
    first = None
    latest_s = 0.0
    is_matroska = container.format.name.startswith("matroska")
    # Other formats may start a stream in the middle, where PyAV cannot read all of them at once.
    streams = () if is_matroska else (stream,)
    try:
        for packet in container.demux(*streams):
            if is_matroska and packet.pts is not None and packet.time_base is not None:
                stop = (packet.pts + (packet.duration or 0)) * packet.time_base
                latest_s = max(latest_s, float(stop))
            if packet.stream_index != stream.index:
                continue
            if packet.size and packet.is_corrupt:
                where = f"the file ends inside video packet {len(packets)}"
                return packets, first, SourceError("truncated", where)
            if packet.size:
                packets.append(
                    Packet(
                        pts=packet.pts or 0,
                        dts=packet.dts,
                        duration=packet.duration or 0,
                        is_key=packet.is_keyframe,
                        is_shown=not packet.is_discard,
                        has_pts=packet.pts is not None,
                    )
                )
            if first is None:
                # A stream may start in the middle. That no frame follows is found later.
                with contextlib.suppress(av.FFmpegError):
                    first = next((one for one in packet.decode() if not one.is_corrupt), None)
    except av.FFmpegError as error:
        damage = damaged(f"the file cannot be read past video packet {len(packets)}", error)
        damage.__cause__ = error
        return packets, first, damage
    declared_s = (container.duration or 0) / av.time_base
    if is_matroska and declared_s > 1.1 * latest_s + 1:
        where = f"the file ends at {latest_s:.1f} s of the {declared_s:.1f} s in its header"
        return packets, first, SourceError("truncated", where)
    return packets, first, None


def _are_frames(packets: list[Packet]) -> bool:
    """Whether each packet that is not hidden is one frame, shown at the time it carries."""
    if not packets or not all(packet.has_pts for packet in packets):
        return False
    shown = [packet.pts for packet in packets if packet.is_shown]
    # A stream that starts in the middle begins with frames that cannot be decoded.
    starts_clean = packets[0].is_key and packets[0].pts == min(packet.pts for packet in packets)
    return starts_clean and len(shown) == len(set(shown))


def _times_by_decoding(path: Path) -> tuple[list[int], dict[int, int], SourceError | None]:
    """Return presentation times in the order shown, durations, and the error that ended them."""
    pts: list[int] = []
    durations: dict[int, int] = {}
    try:
        with open_video(path) as (container, stream):
            for frame in decode_frames(container, stream):
                # A frame without a time repeats the last one, so that the caller counts instead.
                pts.append(frame.pts if frame.pts is not None else pts[-1] if pts else 0)
                durations[pts[-1]] = frame.duration or 0
    except SourceError as error:
        return pts, durations, error
    return pts, durations, None


def decode_frames(container: Any, stream: Any) -> Any:
    """Yield decoded frames in presentation order, from the container's position.

    What cannot be decoded before the first whole frame is skipped, as players do with a stream
    that starts in the middle.

    Raises:
        SourceError: ``corrupt``, at the first error or damaged frame after that.
        MemoryError: at any time.
    """
    count = 0
    packets = container.demux(stream)
    decoder = decoder_of(stream)
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                return
            frames = decoder.decode(packet)
        except av.EOFError:
            return
        except av.FFmpegError as error:
            if count or isinstance(error, MemoryError):
                raise damaged(f"decoding stopped after {count} frames", error) from error
            continue
        for frame in frames:
            if not frame.is_corrupt:
                count += 1
                yield frame
            elif count:
                message = f"the decoder marked the frame after {count} frames as damaged"
                raise SourceError("corrupt", message)


def _last_duration_s(pts: list[int], duration: int, unit: Fraction, rate: Fraction | None) -> float:
    """Seconds that the last frame is shown, which containers often get wrong or omit."""
    gaps = [later - earlier for earlier, later in pairwise(pts)]
    if duration > 0 and (not gaps or duration <= 2 * max(gaps)):
        return float(duration * unit)
    if gaps:
        return float(statistics.median(gaps) * unit)
    return float(1 / rate) if rate else 1 / 25
