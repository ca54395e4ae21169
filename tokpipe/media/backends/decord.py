"""decord or decord2, with an FFmpeg of their own, used only as was measured to be correct.

Skipping, seeking and batches silently return wrong frames of ordinary files. Calling ``next()`` for
every frame, with the fault limit at zero, returned the right frames or an error on every file.
"""

import ctypes
import os
from itertools import count

import numpy as np
from av.codec.context import Flags
from numpy.typing import NDArray

from tokpipe.errors import SourceError
from tokpipe.media.backends import Task
from tokpipe.media.colour import HD_ROWS
from tokpipe.media.container import open_video
from tokpipe.media.geometry import Crop, Orientation
from tokpipe.media.timeline import Timeline, decode_frames

# Otherwise PyAV would call some functions of decord's FFmpeg, and versions would not say which.
ctypes.RTLD_GLOBAL = ctypes.RTLD_LOCAL  # type: ignore[misc]
import decord  # noqa: E402
from decord._ffi.base import _LIB  # noqa: E402

# Frames of MPEG-TS come twice, AVI has no times, and decord 0.6 has no AV1.
_FORMATS = frozenset({"mov", "matroska"})
_CODECS = frozenset({"h264", "hevc", "vp9"})
_SAMPLES = frozenset({"yuv420p", "yuvj420p"})
_UNTAGGED, _MATRICES = 2, (1, 4, 5, 6, 7, 9)

# Any positive limit below one frame stops decoding at the first frame that decord makes up.
_FAULT_LIMIT = 1e-9

# Everything that it was seen to raise on damaged files.
_ERRORS = (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, AssertionError)


def versions() -> dict[str, str]:
    found = {"decord": decord.__version__}
    for name in ("avcodec", "avfilter", "avformat", "avutil", "swscale"):
        if ask := getattr(_LIB, f"{name}_version", None):  # unless hidden inside
            major, minor, micro = (ask() >> bits & 255 for bits in (16, 8, 0))
            found[f"decord lib{name}"] = f"{major}.{minor}.{micro}"
    return found


def decode(task: Task, out: NDArray[np.uint8]) -> None:
    """Decode the whole file in order and keep the wanted frames; any doubt is ``corrupt``."""
    timeline, wanted = task.timeline, task.wanted
    fit = task.framing.fit(timeline.height, timeline.width)
    if reason := _declines(task, fit.box is None) or _moves(task):
        raise SourceError("unsupported", f"decord is not used here: {reason}")
    decord.logging.set_level(decord.logging.ERROR)
    height, width = fit.resized
    # Without width and height it reads ahead 7 GB of 1080p.
    options = {"width": width, "height": height, "num_threads": 1, "fault_tol": _FAULT_LIMIT}
    try:
        reader = decord.VideoReader(str(task.path), ctx=decord.cpu(0), **options)
        _check_times(reader, timeline)
        slot = 0
        for index in count():  # only the end shows whether a frame was dropped, or came twice
            try:
                picture = reader.next()
            except StopIteration:
                break
            if slot < len(wanted) and wanted[slot] == index:
                resized: NDArray[np.uint8] = picture.asnumpy()
                # It mistakes row padding for pixels at widths such as 16, 48 and 72.
                if resized.shape != (height, width, 3):
                    raise SourceError("corrupt", f"decord's frame has shape {resized.shape}")
                while slot < len(wanted) and wanted[slot] == index:
                    fit.place(resized, task.framing.background, out[slot])
                    slot += 1
    except _ERRORS as error:
        last_line = str(error).strip().rpartition("\n")[2]
        raise SourceError("corrupt", f"decord stopped: {last_line}") from error
    if index != len(timeline):
        raise SourceError("corrupt", f"decord has {index} frames, the file lists {len(timeline)}")
    if os.lseek(2, 0, os.SEEK_CUR):
        raise SourceError("corrupt", "decord's FFmpeg reported an error in the video stream")


def _declines(task: Task, keeps_whole: bool) -> str | None:
    timeline = task.timeline
    tags, height, width = timeline.tags, timeline.height, timeline.width
    is_known = tags.matrix in _MATRICES or (tags.matrix == _UNTAGGED and height < HD_ROWS)
    is_kind = timeline.format in _FORMATS and timeline.codec in _CODECS
    reasons = {
        f"{timeline.codec} in {timeline.format}": not is_kind,
        "the packets do not determine the frames": not timeline.from_packets,
        f"{timeline.num_video_streams} video streams": timeline.num_video_streams != 1,
        f"{tags.format} of {height}x{width}": tags.format not in _SAMPLES or (height | width) % 2,
        "its colours": tags.is_hdr or task.framing.matrix != "auto" or not is_known,
        "interlaced": tags.is_interlaced or timeline.has_fields,
        "the picture has to be rotated": timeline.orientation != Orientation(),
        "the picture has to be cropped": not keeps_whole or timeline.crop != Crop(),
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


def _moves(task: Task) -> str | None:
    """Why decord would show another picture: FFmpeg as it uses it moves some that are cropped."""
    pictures = []
    for kept in (~0, ~Flags.unaligned):
        with open_video(task.path, task.file_name) as (container, stream):
            stream.codec_context.flags &= kept
            frame = next(decode_frames(container, stream))
            if frame.format.name not in _SAMPLES:  # only another decoder finds the alpha
                return f"the frames are {frame.format.name}"
            pictures.append(frame.to_ndarray())
    return None if np.array_equal(*pictures) else "columns are cropped on the left"


def _check_times(reader: decord.VideoReader, timeline: Timeline) -> None:
    if len(reader) != len(timeline):
        found = f"decord counts {len(reader)} frames, the file lists {len(timeline)}"
        raise SourceError("corrupt", found)
    times_s = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0].astype(np.float64)
    allowed_s = 1e-3 + timeline.tick_s + 1e-6 * timeline.end_s  # decord keeps times in 32 bits
    worst_s = float(np.abs(times_s - times_s[0] - timeline.times_s + timeline.times_s[0]).max())
    if worst_s > allowed_s:
        raise SourceError("corrupt", f"decord's frame times differ by up to {worst_s:.3f} s")
