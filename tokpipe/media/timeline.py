"""When frames of a video are on screen, without decoding if possible, and which a clip shows."""

import contextlib
import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from tokpipe.errors import SourceError
from tokpipe.media.colour import Tags, tags_of
from tokpipe.media.container import (
    AS_PICTURE,
    count_clean_joins,
    damaged,
    decoder_of,
    described,
    is_encrypted,
    open_video,
    read_description,
)
from tokpipe.media.geometry import Crop, Orientation, orientation_of
from tokpipe.media.partial import list_only, use_index
from tokpipe.types import Cut

# Containers that store a presentation time per frame, and codecs in which a packet is one shown
# frame. Elsewhere (decoding times only, fields, hidden frames in separate packets, packed
# B-frames) packets do not determine the frames, which are counted by decoding them.
_TIMED_FORMATS = frozenset({"mov", "matroska", "mpegts", "flv"})
_PLAIN_CODECS = frozenset({"h264", "hevc", "vp9", "av1"})
# Indexed containers, in which seeking reaches exactly the requested key frame.
_SEEKABLE_FORMATS = frozenset({"mov", "matroska"})

# Formats in which a clock may jump. FFmpeg's tools, too, take so long a step for another clock.
_STREAMED_FORMATS = frozenset({"mpegts", "mpeg", "flv"})
_MAX_STEP_S = 10.0
_HOLE_FRAMES = 8  # fewer may be an irregular rate
_ROUNDING = 1e-6  # Error allowed in times, as a fraction of an output frame's duration
MAX_GAP_S = 3600.0  # A longer frame is a damaged timestamp, and could ask for a billion frames

_FLAGS = ("has_pts", "has_dts", "is_key", "is_shown", "is_corrupt", "is_restart")
_PACKET = [(name, "i8") for name in ("pts", "dts", "duration")] + [(name, "?") for name in _FLAGS]
"""One packet of the video stream, with times in units of the stream, 0 if it has none.
``is_restart``: the timestamps begin again here, as where two files were joined."""


class Selection(NamedTuple):
    """The frames of one segment of a row."""

    indices: NDArray[np.int64]  # (T,) positions in the timeline, ascending; long frames repeat
    num_segments: int  # Number of segments of the whole row; 0 if it shows no frame
    num_frames: int  # Frames of all segments together


@dataclass(frozen=True, slots=True)
class Timeline:
    """The frames that a player shows, in order, and what they look like. As in players, time zero
    is where the first stream begins, and edit lists can hide frames."""

    times_s: NDArray[np.float64]
    """(N,) presentation times, strictly increasing. The first is above 0 if sound starts first."""
    end_s: float  # When the last frame leaves the screen
    tick_s: float  # Resolution of the times
    pts: tuple[int, ...] | None
    """What decoded frames carry, in units of the stream: the same times, which begin again where
    files were joined. None where frames carry no times."""
    key_frames: NDArray[np.int64]  # (N, 2) PTS and DTS to seek to; empty where that is unreliable
    from_packets: bool  # Whether packets list the frames; otherwise they were counted by decoding
    height: int
    width: int  # Of the first frame, without what is hidden, before rotation, in pixels as stored
    pixel_aspect: Fraction  # Width of a coded pixel over its height
    orientation: Orientation
    crop: Crop
    tags: Tags  # Of the first frame
    has_fields: bool  # Whether only the container says that frames are interlaced
    format: str
    codec: str
    num_video_streams: int
    damage: str | None = None  # What is missing from a damaged file that is used nevertheless
    is_picture: bool = False  # One frame without a time, whatever the span and the rate

    def __len__(self) -> int:
        return len(self.times_s)

    @property
    def average_fps(self) -> float:
        return len(self) / (self.end_s - float(self.times_s[0]))

    @property
    def shown(self) -> tuple[int, int, Fraction]:
        """Height, width and pixel aspect of the upright picture."""
        return self.orientation.shown(self.height, self.width, self.pixel_aspect)

    def select(
        self,
        *,
        start_s: float | None,
        end_s: float | None,
        fps: float | None,
        segment: int,
        cut: Cut,
    ) -> Selection:
        """Choose the frames of segment ``segment`` of the span from ``start_s`` to ``end_s``.

        At ``fps``, output ``k`` is the frame on screen at ``start_s + k / fps``, for every ``k``
        before the end of the span and of the video. With ``fps=None``, each frame that appears
        within the span is taken once. Segment ``j`` has the outputs ``cut.bounds(j)``. A span that
        begins before the first frame begins with it: until then there is nothing on screen.
        """
        if self.is_picture:
            return Selection(np.zeros(1, np.int64), 1, 1)
        times_s, first_s = self.times_s, float(self.times_s[0])
        start = first_s if start_s is None else max(start_s, first_s)
        end = self.end_s if end_s is None else min(end_s, self.end_s)
        gap_s = (self.end_s - first_s) / len(self)
        period_s = gap_s if fps is None else 1 / fps
        # A container that counts in milliseconds moves a frame and the start by up to one in all,
        # which must not cost a frame. A tick of half a frame is no rounding.
        slack_s = self.tick_s if 2 * self.tick_s < min(gap_s, period_s) else 0.0
        slack_s += _ROUNDING * period_s
        first, last = cut.bounds(segment)
        if fps is None:
            low, high = np.searchsorted(times_s, [start - slack_s, end - slack_s], side="left")
            count = max(0, int(high - low))
            indices = np.arange(low + min(first, count), low + min(last, count))
        else:
            # A duration is rounded, too.
            count = max(0, math.ceil((end - start - 2 * slack_s) * fps))
            outputs = np.arange(min(first, count), min(last, count))
            at = start + outputs / fps + slack_s
            indices = np.maximum(np.searchsorted(times_s, at, side="right") - 1, 0)
        return Selection(indices.astype(np.int64), cut.num_parts(count), count)


def read_timeline(path: Path, file_name: str = "", *, salvage: bool = False) -> Timeline:
    """Read the presentation times of a video from its packets, decoding only the first frame. With
    ``salvage``, a file cut short keeps its whole frames before the cut, and ``damage`` says what is
    missing. A file always has the same timeline. ``file_name`` is as in ``open_video``."""
    with open_video(path, file_name) as (container, stream):
        packets, first, damage = _read_packets(path, container, stream)
        name = container.format.name.split(",")[0]
        if name == "mov" and (missing := len(stream.index_entries) - len(packets)) > 0:
            where = f"the last {missing} of {len(stream.index_entries)} packets are missing"
            damage = damage or SourceError("truncated", where)
        if damage is not None and not salvage:
            raise damage
        use_index(path, stream, packets)
        codec = stream.codec_context.codec.canonical_name
        parts: list[Any] = np.split(packets, 1 + np.flatnonzero(packets.is_restart[1:]))
        trusted = name in _TIMED_FORMATS and codec in _PLAIN_CODECS and all(map(_are_frames, parts))
        trusted = trusted and first is not None  # decoding shows why there is none
        pts: list[int] = []
        durations = dict(zip(packets.pts.tolist(), packets.duration.tolist(), strict=True))
        for part in parts if trusted else ():
            # A lost packet is shown no earlier than it is decoded, so whatever is shown after the
            # last packet was decoded may have a gap before it.
            is_cut = damage is not None and part is parts[-1]
            end = part.dts.max() if is_cut else math.inf
            pts += np.sort(part.pts[part.is_shown & (part.pts <= end)]).tolist()
        can_seek = trusted and name in _SEEKABLE_FORMATS and len(parts) == 1
        keys = packets[packets.is_key & packets.has_dts & can_seek]
        keys = keys[np.argsort(keys.pts, kind="stable")]
        unit, rate = stream.time_base, stream.average_rate or stream.guessed_rate
        clock_s = (container.start_time or 0) / av.time_base
        aspect, own = stream.sample_aspect_ratio, stream.codec_context.sample_aspect_ratio
        num_video_streams = len(container.streams.video)
        crop, has_fields = read_description(container, stream)
    hole = _first_hole(packets, name)
    if not trusted:
        # Nothing after the damage counts, even if the decoder does not notice it.
        num_packets = len(packets) if damage else None
        pts, durations, stopped = _times_by_decoding(path, file_name, num_packets)
        if stopped is not None and not (salvage and pts):
            raise stopped
        damage = damage or stopped
    if not pts or first is None:
        raise damage or SourceError("no_video", "the video stream has no frame that can be decoded")
    if name in ("gif", "apng") and len(pts) == 1:
        found = f"the file has one picture and is not animated{AS_PICTURE}"
        raise SourceError("still_picture", found)
    if hole:
        shown = int(np.argmax(np.diff(pts) >= hole)) + 1
        where = f"{float(hole * unit):.3g} s of frames are missing after frame {shown - 1}"
        damage = SourceError("gap", where)
        if not salvage:
            raise damage
        del pts[shown:]
    steps = np.diff(np.array(pts, np.int64))
    breaks = (steps <= 0) | ((len(parts) > 1) & (steps > _MAX_STEP_S / unit))
    known = steps[~breaks]
    has_pts = len(parts) > 1 or len(known) == len(steps)
    if has_pts:
        # A later part begins when the last frame of the earlier one has been shown.
        for at in np.flatnonzero(breaks):
            steps[at] = round(_duration_s(durations.get(pts[at]), known, unit, rate) / unit)
        # Integers with one rounding each: the same values as fractions, but much faster.
        times_s = np.cumsum([0, *steps]) * unit.numerator / unit.denominator
        late_s = float(pts[0] * unit) - clock_s
        times_s += late_s if late_s > 1e-6 and name != "avi" else 0.0  # FFmpeg rounds the clock
        last_s = float(_duration_s(durations.get(pts[-1]), known, unit, rate))
    else:
        # Decoding times, as in AVI with B-frames: the order is right, and the rate constant.
        last_s = 1 / float(rate or 25)
        times_s = np.arange(len(pts), dtype=np.float64) / float(rate or 25)
    end_s = float(times_s[-1]) + last_s
    longest = float(np.diff(times_s, append=end_s).max())
    if longest > MAX_GAP_S:
        raise SourceError("corrupt", f"one frame lasts {longest:.0f} s: its timestamps are damaged")
    orientation = Orientation()
    if (matrix := first.side_data.get("DISPLAYMATRIX")) is not None:
        orientation = orientation_of(np.frombuffer(bytes(matrix), np.int32).tolist())
    crop = crop.within(first.height, first.width)
    height, width = crop.kept(first.height, first.width)
    share = Fraction(first.height * width, first.width * height)
    # FFmpeg compares the size in which a track is shown with what is coded, not with the rest.
    wrong = (share, share * (own or 1)) if name == "mov" and share != 1 else ()
    if any(abs((aspect or 0) / one - 1) < 0.005 for one in wrong):
        aspect = own
    return Timeline(
        times_s=times_s,
        end_s=end_s,
        tick_s=float(unit) if has_pts else 0.0,
        pts=tuple(pts) if has_pts else None,
        key_frames=np.stack([keys.pts, keys.dts], axis=1),
        from_packets=trusted,
        height=height,
        width=width,
        # Unset, or beyond any real format.
        pixel_aspect=Fraction(aspect if aspect and Fraction(1, 8) <= aspect <= 8 else 1),
        orientation=orientation,
        crop=crop,
        tags=tags_of(first),
        # In formats that cannot say so, FFmpeg guesses from the stream. Its frames know better.
        has_fields=has_fields and name not in _STREAMED_FORMATS and not first.interlaced_frame,
        format=name,
        codec=codec,
        num_video_streams=num_video_streams,
        damage=None if damage is None else str(damage),
    )


def _read_packets(path: Path, container: Any, stream: Any) -> tuple[Any, Any, SourceError | None]:
    """Return every whole packet, the first frame, and what is wrong with a file cut short."""
    if is_encrypted(path, container, stream):
        raise SourceError("encrypted", "the video stream is encrypted")
    rows: list[tuple[int | bool, ...]] = []
    first = None
    latest_s = 0.0
    is_matroska = container.format.name.startswith("matroska")
    streams = () if is_matroska else container.streams.video
    places: list[tuple[int, int]] = []
    try:
        for packet, is_restart in _with_restarts(container.demux(*streams), container, stream):
            if is_matroska and packet.pts is not None and packet.time_base is not None:
                stop = (packet.pts + (packet.duration or 0)) * packet.time_base
                latest_s = max(latest_s, float(stop))
            if packet.stream.type == "video" and packet.size:
                places.append((packet.pos or 0, packet.stream_index))
            if packet.stream_index != stream.index:
                continue
            if packet.has_sidedata("encryption_info"):
                raise SourceError("encrypted", "the video stream is encrypted")
            if packet.size:
                times = packet.pts or 0, packet.dts or 0, packet.duration or 0
                known = packet.pts is not None, packet.dts is not None
                flags = packet.is_keyframe, not packet.is_discard, packet.is_corrupt, is_restart
                rows.append((*times, *known, *flags))
            if first is None:
                # A stream may start in the middle. That no frame follows is found later.
                with contextlib.suppress(av.FFmpegError):
                    first = next((one for one in packet.decode() if not one.is_corrupt), None)
                if first is not None:
                    list_only(path, stream)
    except av.FFmpegError as error:
        damage = damaged(f"the file cannot be read past video packet {len(rows)}", error)
        damage.__cause__ = error
        return np.array(rows, _PACKET).view(np.recarray), first, damage
    name, packets = container.format.name, np.array(rows, _PACKET).view(np.recarray)
    # Streams of one recording take turns. Those of joined files follow one another.
    order = [index for _, index in sorted(places)]
    turns = 1 + np.count_nonzero(np.diff(order))
    is_joined = name in _STREAMED_FORMATS and 1 < turns < 2 * len(set(order))
    num_found = sum(": Video: " in one.partition("\n")[0] for one in described(container).values())
    if is_joined or num_found > len(container.streams.video):
        where = "another video stream begins midway, as in joined files: split the file there"
        return packets, first, SourceError("corrupt", where)
    flagged = np.flatnonzero(packets.is_corrupt)
    for at in np.flatnonzero(packets.is_restart):
        # A clock may be set within a stream. But where packets are lost as well, or may be, frames
        # up to the next key frame belong to others. FFmpeg hides some of joined fragmented MP4.
        is_lossy = name == "mpeg" or packets.is_corrupt[max(0, at - 3) : at + 1].any()
        if name.startswith("mov") or (is_lossy and not packets.is_key[at]):
            where = f"the timestamps begin again at video packet {at}, which is not a clean start"
            return packets[:at], first, SourceError("corrupt", where)
    # FFmpeg also flags what is before a join of two MPEG-TS files, although nothing is missing.
    joins = count_clean_joins(path, stream.id) if len(flagged) and name == "mpegts" else 0
    for at in flagged[joins:]:  # or at the packet after it
        damage = SourceError("corrupt", f"data is missing at video packet {at}")
        if at >= len(packets) - 2:
            damage = SourceError("truncated", f"the file ends inside video packet {at}")
        return packets[:at], first, damage
    declared_s = (container.duration or 0) / av.time_base
    if is_matroska and declared_s > 1.1 * latest_s + 1:
        where = f"the file ends at {latest_s:.1f} s of the {declared_s:.1f} s in its header"
        return packets, first, SourceError("truncated", where)
    return packets, first, None


def _with_restarts(packets: Any, container: Any, stream: Any) -> Iterator[tuple[Any, bool]]:
    """Yield packets, and whether the timestamps of the stream begin again there."""
    name, unit, last = container.format.name, float(stream.time_base), None
    # PyAV may raise IndexError at the end, if FFmpeg met more streams than when it opened the file.
    with contextlib.suppress(IndexError):
        for packet in packets:
            step_s, dts = 0.0, packet.dts if packet.stream_index == stream.index else None
            if not (dts is None or packet.is_discard):  # What is hidden may be from anywhere.
                step_s = 0.0 if last is None else (dts - last) * unit
                last = dts
            slack_s = 0 if packet.is_keyframe and not name.startswith("mov") else 1
            yield packet, step_s < -slack_s or (step_s > _MAX_STEP_S and name in _STREAMED_FORMATS)


def _first_hole(packets: Any, name: str) -> int:
    """Return for how many ticks frames are missing at the first hole; 0 if there is none. MP4 lists
    how long a packet lasts. Elsewhere a hole is a long step to a key frame, in a stream of equal
    steps; where packets were flagged although they seem whole, it is any missing frame."""
    if len(packets) < 2 or name not in _TIMED_FORMATS | _STREAMED_FORMATS:
        return 0
    if name == "mov":
        steps, usual = np.diff(packets.dts), packets.duration[:-1]
        is_hole = steps - usual >= max(1.0, _HOLE_FRAMES * np.median(usual))
    else:
        part = np.cumsum(packets.is_restart)
        order = np.lexsort((packets.pts, part))
        steps = np.where(np.diff(part[order]), 0, np.diff(packets.pts[order]))
        usual = np.full(len(steps), max(1.0, np.median(steps)))
        resumed = np.minimum.accumulate(order[::-1])[-2::-1]  # what is decoded first after a step
        is_hole = (steps - usual >= _HOLE_FRAMES * usual) & packets.is_key[resumed]
        is_equal = np.abs(steps - usual) <= usual / 2
        if packets.is_corrupt.any():
            is_hole = steps > 1.5 * usual
        elif is_hole.mean() > 0.1 or is_equal[~is_hole].mean() < 0.95:
            return 0
    return int((steps - usual)[is_hole][:1].sum())


def _are_frames(packets: Any) -> bool:
    """Whether each packet that is not hidden is one frame, shown at the time it carries."""
    if not len(packets) or not packets.has_pts.all():
        return False
    shown = packets.pts[packets.is_shown]
    # A stream that starts in the middle begins with frames that cannot be decoded.
    starts_clean = packets.is_key[0] and packets.pts[0] == packets.pts.min()
    return bool(starts_clean) and len(shown) == len(np.unique(shown))


def _times_by_decoding(
    path: Path, file_name: str, num_packets: int | None
) -> tuple[list[int], dict[int, int], SourceError | None]:
    """Return presentation times in the order shown, durations, and the error that ended them."""
    pts: list[int] = []
    durations: dict[int, int] = {}
    try:
        with open_video(path, file_name) as (container, stream):
            for frame in decode_frames(container, stream, num_packets):
                # A frame without a time repeats the last one, so that the caller counts instead.
                pts.append(frame.pts if frame.pts is not None else pts[-1] if pts else 0)
                durations[pts[-1]] = frame.duration or 0
    except SourceError as error:
        return pts, durations, error
    return pts, durations, None


def decode_frames(
    container: Any, stream: Any, num_packets: int | None = None, wanted: Sequence[int] = ()
) -> Any:
    """Yield decoded frames in presentation order, from the container's position.

    What cannot be decoded before the first whole frame is skipped, as players do with a stream
    that starts in the middle. Later errors and damaged frames raise SourceError ``corrupt``, or
    MemoryError. The decoder restarts at a key frame where the timestamps do: each of several
    joined files is decoded as if it were alone. Between ``wanted``, sorted times of packets that
    are frames, those to which no frame refers are left out if the decoder knows them.
    """
    count = 0
    packets = _with_restarts(islice(container.demux(stream), num_packets), container, stream)
    decoder = decoder_of(stream)
    while True:
        try:
            (packet, is_restart), frames = next(packets), []
            if is_restart and packet.is_keyframe:
                frames += decoder.decode(None)
                decoder.flush_buffers()
            if wanted and packet.pts is not None:
                at = bisect_left(wanted, packet.pts)  # What comes after the last is kept.
                is_wanted = at == len(wanted) or wanted[at] == packet.pts
                decoder.skip_frame = "DEFAULT" if is_wanted else "NONREF"  # for this packet alone
            frames += decoder.decode(packet)
        except (av.EOFError, StopIteration):
            return
        except av.FFmpegError as error:
            # No variable for it: an error that its own frame refers to keeps that frame's memory.
            if count or damaged("", error).reason != "corrupt":
                raise damaged(f"decoding stopped after {count} frames", error) from error
            continue
        for frame in frames:
            if not frame.is_corrupt:
                count += 1
                yield frame
            elif count:
                message = f"the decoder marked the frame after {count} frames as damaged"
                raise SourceError("corrupt", message)


def _duration_s(
    ticks: int | None, steps: NDArray[np.int64], unit: Fraction, rate: Fraction | None
) -> Fraction:
    """How long a frame without a next one is shown, which containers often get wrong or omit."""
    if ticks and ticks > 0 and (not len(steps) or ticks <= 2 * steps.max()):
        return ticks * unit
    return Fraction(float(np.median(steps))) * unit if len(steps) else 1 / Fraction(rate or 25)
