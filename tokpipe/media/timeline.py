"""When each frame of a video is on screen, as far as possible without decoding it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from tokpipe.errors import SourceError
from tokpipe.media.container import damaged, open_video
from tokpipe.media.geometry import Orientation, orientation_of

# Containers that store a presentation time for each frame, and codecs in which one packet is one
# shown frame. Elsewhere (times of decoding only, fields, hidden frames in packets of their own,
# packed B-frames) the packets do not tell, and the frames are counted by decoding them.
_TIMED_FORMATS = frozenset({"mov", "matroska", "mpegts", "flv"})
_PLAIN_CODECS = frozenset({"h264", "hevc", "vp9", "av1"})
# Indexed containers, in which seeking lands on the key frame that was asked for.
_SEEKABLE_FORMATS = frozenset({"mov", "matroska"})

MAX_GAP_S = 3600.0
"""A frame shown for longer is a damaged timestamp: one flipped bit would make a billion frames."""


@dataclass(frozen=True, slots=True)
class KeyFrame:
    """A packet from which decoding can start."""

    pts: int
    dts: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """The frames that a player shows, in order, and what they look like.

    Time zero is the first of them. Frames that an edit list hides are not among them.
    """

    times_s: NDArray[np.float64]
    """(N,) presentation times, strictly rising from 0."""
    end_s: float
    """When the last frame leaves the screen."""
    tick_s: float
    """Resolution of the times."""
    pts: tuple[int, ...] | None
    """The same times as the stream counts them; None where decoded frames do not carry them."""
    key_frames: tuple[KeyFrame, ...]
    """Where decoding may start, rising; empty where seeking is not reliable."""
    from_packets: bool
    """Read off the packets; else the frames were counted by decoding."""
    height: int
    width: int
    """Size of the first frame as coded: before rotation, in pixels that may not be square."""
    pixel_aspect: Fraction
    """Width of a coded pixel over its height."""
    orientation: Orientation
    format: str
    codec: str
    num_video_streams: int
    damage: str | None = None
    """Why the file has less than it should, where that is no reason to refuse it."""

    def __len__(self) -> int:
        return len(self.times_s)

    @property
    def average_fps(self) -> float:
        return len(self) / self.end_s


def read_timeline(path: Path, *, salvage: bool = False) -> Timeline:
    """Read the presentation times of a video's frames from its packets; decode only the first.

    With ``salvage``, a file that was cut short has the frames that lie whole before the cut, and
    ``Timeline.damage`` says what is missing. The same file always gives the same timeline.

    Raises:
        SourceError: the file is no video, has no frames, or was cut short.
    """
    with open_video(path) as (container, stream):
        packets, first, damage = _read_packets(container, stream)
        name = container.format.name.split(",")[0]
        if name == "mov" and (missing := len(stream.index_entries) - len(packets)) > 0:
            damage = damage or SourceError(
                "truncated",
                f"the file ends {missing} of {len(stream.index_entries)} packets before the end "
                "that its index gives",
            )
        if damage is not None and (not salvage or damage.reason == "too_large"):
            raise damage
        codec = stream.codec_context.codec.canonical_name
        trusted = name in _TIMED_FORMATS and codec in _PLAIN_CODECS and _packets_tell(packets)
        key_frames: tuple[KeyFrame, ...] = ()
        pts: tuple[int, ...] | None
        if trusted:
            # A lost packet is shown no earlier than it is decoded: what is shown after the last
            # packet at hand was decoded may have a gap before it.
            last = packets[-1].dts if damage is not None else None
            pts = tuple(
                sorted(
                    packet.pts
                    for packet in packets
                    if packet.is_shown and (last is None or packet.pts <= last)
                )
            )
            if name in _SEEKABLE_FORMATS:
                key_frames = tuple(
                    KeyFrame(packet.pts, packet.dts)
                    for packet in sorted(packets, key=lambda packet: packet.pts)
                    if packet.is_key and packet.dts is not None
                )
            durations = {packet.pts: packet.duration for packet in packets}
        unit, rate = stream.time_base, stream.average_rate or stream.guessed_rate
        aspect = stream.sample_aspect_ratio
        num_video_streams = len(container.streams.video)
    if not trusted:
        pts, durations, stopped = _times_by_decoding(path)
        if stopped is not None and (not salvage or not pts or stopped.reason == "too_large"):
            raise stopped
        damage = damage or stopped
    if not pts or first is None:
        raise damage or SourceError("no_video", "the video stream has no frame that can be decoded")
    if any(later <= earlier for earlier, later in pairwise(pts)):
        # Times of decoding were stored (AVI with B-frames): the order of the frames is right, and
        # such files have a constant rate.
        times_s = np.arange(len(pts), dtype=np.float64) / float(rate or 25)
        last_s, tick_s, pts = 1 / float(rate or 25), 0.0, None
    else:
        # Whole numbers, and one rounding each: fractions give the same, but slowly.
        ticks, per_s = unit.numerator, unit.denominator
        times_s = np.array([(value - pts[0]) * ticks / per_s for value in pts], np.float64)
        last_s = _last_duration_s(pts, durations.get(pts[-1]) or 0, unit, rate)
        tick_s = float(unit)
    end_s = float(times_s[-1]) + last_s
    longest = float(np.diff(times_s, append=end_s).max())
    if longest > MAX_GAP_S:
        raise SourceError(
            "corrupt",
            f"one frame lasts {longest:.0f} s by its timestamps, more than {MAX_GAP_S:.0f} s: "
            "they are damaged",
        )
    return Timeline(
        times_s=times_s,
        end_s=end_s,
        tick_s=tick_s,
        pts=pts,
        key_frames=key_frames,
        from_packets=trusted,
        height=first.height,
        width=first.width,
        pixel_aspect=_plausible_aspect(aspect),
        orientation=_orientation(first),
        format=name,
        codec=codec,
        num_video_streams=num_video_streams,
        damage=None if damage is None else str(damage),
    )


@dataclass(frozen=True, slots=True)
class _Packet:
    pts: int
    dts: int | None
    duration: int
    is_key: bool
    is_shown: bool
    has_pts: bool


def _read_packets(container: Any, stream: Any) -> tuple[list[_Packet], Any, SourceError | None]:
    """Read every whole packet of the stream; decode as many as it takes to see one frame.

    Returns the packets, the frame, and what is wrong with the file if it was cut short.
    """
    packets: list[_Packet] = []
    first = None
    latest_s = 0.0
    is_matroska = container.format.name.startswith("matroska")
    # Elsewhere a stream may turn up in the middle, which PyAV cannot read along.
    streams = () if is_matroska else (stream,)
    try:
        for packet in container.demux(*streams):
            if is_matroska and packet.pts is not None and packet.time_base is not None:
                stop = (packet.pts + (packet.duration or 0)) * packet.time_base
                latest_s = max(latest_s, float(stop))
            if packet.stream_index != stream.index:
                continue
            if packet.size:
                if packet.is_corrupt:
                    return (
                        packets,
                        first,
                        SourceError(
                            "truncated", f"the file ends inside video packet {len(packets)}"
                        ),
                    )
                packets.append(
                    _Packet(
                        pts=packet.pts or 0,
                        dts=packet.dts,
                        duration=packet.duration or 0,
                        is_key=packet.is_keyframe,
                        is_shown=not packet.is_discard,
                        has_pts=packet.pts is not None,
                    )
                )
            if first is None:
                first = _first_frame(packet)
    except av.FFmpegError as error:
        refusal = damaged(f"the file cannot be read past video packet {len(packets)}", error)
        refusal.__cause__ = error
        return packets, first, refusal
    declared_s = (container.duration or 0) / av.time_base
    if is_matroska and declared_s > 1.1 * latest_s + 1:
        return (
            packets,
            first,
            SourceError(
                "truncated",
                f"the file ends at {latest_s:.1f} s of the {declared_s:.1f} s that its header "
                "gives",
            ),
        )
    return packets, first, None


def _first_frame(packet: Any) -> Any:
    try:
        frames = packet.decode()
    except av.FFmpegError:
        return None  # a stream may begin in the middle; if no frame follows, that is reported
    return next((frame for frame in frames if not frame.is_corrupt), None)


def _packets_tell(packets: list[_Packet]) -> bool:
    """Whether each packet that is not hidden is one frame, shown at the time it carries."""
    if not packets or not all(packet.has_pts for packet in packets):
        return False
    shown = [packet.pts for packet in packets if packet.is_shown]
    # A stream that begins in the middle has frames in front that cannot be decoded.
    starts_clean = packets[0].is_key and packets[0].pts == min(packet.pts for packet in packets)
    return starts_clean and len(shown) == len(set(shown))


def _times_by_decoding(
    path: Path,
) -> tuple[tuple[int, ...], dict[int, int], SourceError | None]:
    """Presentation times and durations of the frames, in the order they are shown, and the error
    that they end with, if they do."""
    pts: list[int] = []
    durations: dict[int, int] = {}
    with open_video(path) as (container, stream):
        try:
            for frame in decode_frames(container, stream):
                # A frame without a time repeats the one before: the caller then counts instead.
                pts.append(frame.pts if frame.pts is not None else pts[-1] if pts else 0)
                durations[pts[-1]] = frame.duration or 0
        except SourceError as error:
            return tuple(pts), durations, error
    return tuple(pts), durations, None


def decode_frames(container: Any, stream: Any) -> Any:
    """Yield decoded frames in order of presentation, from where the container stands.

    What cannot be decoded before the first whole frame is passed over, as players do with a
    stream that begins in the middle.

    Raises:
        SourceError: ``corrupt``, at the first error or damaged frame after that.
    """
    count = 0
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                return
            frames = packet.decode()
        except av.EOFError:
            return
        except (av.FFmpegError, MemoryError) as error:
            if isinstance(error, MemoryError) or count:
                raise damaged(f"decoding stopped after {count} frames", error) from error
            continue
        for frame in frames:
            if frame.is_corrupt:
                if count:
                    raise SourceError(
                        "corrupt", f"the decoder marked the frame after {count} frames as damaged"
                    )
                continue
            count += 1
            yield frame


def _last_duration_s(
    pts: tuple[int, ...], duration: int, unit: Fraction, rate: Fraction | None
) -> float:
    """Seconds that the last frame stays, which containers often get wrong or leave out."""
    gaps = [later - earlier for earlier, later in pairwise(pts)]
    if duration > 0 and (not gaps or duration <= 2 * max(gaps)):
        return float(duration * unit)
    if gaps:
        return float(statistics.median(gaps) * unit)
    return float(1 / rate) if rate else 1 / 25


def _plausible_aspect(aspect: Fraction | None) -> Fraction:
    """The pixel aspect ratio, or 1 where it is unset or beyond any real format."""
    if aspect is None or not Fraction(1, 8) <= aspect <= 8:
        return Fraction(1)
    return Fraction(aspect)


def _orientation(frame: Any) -> Orientation:
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return Orientation()
    return orientation_of(np.frombuffer(bytes(data), np.int32).tolist())
