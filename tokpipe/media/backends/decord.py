"""decord or decord2, with an FFmpeg of their own, used only as was measured to be correct.

``get_batch``, ``seek_accurate``, ``skip_frames`` and index access silently return wrong frames of
ordinary files: open-GOP HEVC, MPEG-4 with B-frames, variable frame rate and fragmented MP4. Calling
``next()`` for every frame, with the fault limit at zero, returned the right frames or an error on
every file tried. So every frame of the file is decoded and scaled here.
"""

import ctypes
import os
from itertools import count

import numpy as np
from numpy.typing import NDArray

from tokpipe.errors import SourceError
from tokpipe.media.backends import Task
from tokpipe.media.timeline import Timeline

# decord offers its libraries' functions to the whole process. PyAV would then call some of
# decord's FFmpeg, and versions would not say which.
ctypes.RTLD_GLOBAL = ctypes.RTLD_LOCAL
import decord  # noqa: E402
from decord._ffi.base import _LIB  # noqa: E402

# What decord was measured to read correctly. It duplicates frames of MPEG-TS, and has no times for
# AVI. decord 0.6 has no AV1.
_FORMATS = frozenset({"mov", "matroska"})
_CODECS = frozenset({"h264", "hevc", "vp9"})

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
    """Decode the whole file in order and keep the wanted frames.

    Raises:
        SourceError: ``unsupported`` for files that decord is not used for, else ``corrupt``: an
            error, an FFmpeg message, or a number of frames or times other than listed.
    """
    timeline, wanted = task.timeline, task.wanted
    fit = task.framing.fit(timeline.height, timeline.width)
    if reason := _declines(timeline, fit.box is None):
        raise SourceError("unsupported", f"decord is not used here: {reason}")
    decord.logging.set_level(decord.logging.ERROR)
    height, width = fit.resized
    try:
        # Without width and height it reads ahead 7 GB of 1080p.
        reader = decord.VideoReader(
            str(task.path),
            ctx=decord.cpu(0),
            width=width,
            height=height,
            num_threads=1,
            fault_tol=_FAULT_LIMIT,
        )
        _check_times(reader, timeline)
        slot = 0
        # Only the end shows whether a frame was dropped, or came twice.
        for index in count():
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
                    fit.place(resized, out[slot])
                    slot += 1
    except _ERRORS as error:
        last_line = str(error).strip().rpartition("\n")[2]
        raise SourceError("corrupt", f"decord stopped: {last_line}") from error
    if index != len(timeline):
        raise SourceError("corrupt", f"decord has {index} frames, the file lists {len(timeline)}")
    if os.lseek(2, 0, os.SEEK_CUR):
        raise SourceError("corrupt", "decord's FFmpeg reported an error in the video stream")


def _declines(timeline: Timeline, keeps_whole: bool) -> str | None:
    reasons = {
        f"{timeline.codec} in {timeline.format}": timeline.format not in _FORMATS
        or timeline.codec not in _CODECS,
        "the packets do not determine the frames": not timeline.from_packets,
        f"{timeline.num_video_streams} video streams": timeline.num_video_streams != 1,
        "the picture has to be rotated": not timeline.orientation.is_upright,
        "the picture has to be cropped before scaling": not keeps_whole,
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


def _check_times(reader: decord.VideoReader, timeline: Timeline) -> None:
    if len(reader) != len(timeline):
        raise SourceError(
            "corrupt", f"decord counts {len(reader)} frames, the file lists {len(timeline)}"
        )
    times_s = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0].astype(np.float64)
    # decord keeps times in 32 bits.
    allowed_s = 1e-3 + timeline.tick_s + 1e-6 * timeline.end_s
    worst_s = float(np.abs(times_s - times_s[0] - timeline.times_s + timeline.times_s[0]).max())
    if worst_s > allowed_s:
        raise SourceError("corrupt", f"decord's frame times differ by up to {worst_s:.3f} s")
