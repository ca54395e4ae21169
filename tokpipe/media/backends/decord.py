"""decord, with its own FFmpeg (4.1), used only in the way that was measured to be correct.

Its ``get_batch``, ``seek_accurate``, ``skip_frames`` and index access silently return wrong frames
of ordinary files: open-GOP HEVC, MPEG-4 with B-frames, variable frame rate and fragmented MP4.
Calling ``next()`` for every frame, with the fault limit at zero, returned the right frames or an
error on every file tried. So every frame of the file is decoded and scaled here. For a clip that
needs few of them PyAV is faster: it converts only what is wanted, and can seek.
"""

import os
from typing import Any

import decord
import numpy as np
from decord import DECORDError, DECORDLimitReachedError
from numpy.typing import NDArray

from tokpipe.errors import SourceError
from tokpipe.media.backends import Task
from tokpipe.media.timeline import Timeline

# What decord was measured to read correctly. It has no AV1, duplicates frames of MPEG-TS, and has
# no times for AVI.
_FORMATS = frozenset({"mov", "matroska"})
_CODECS = frozenset({"h264", "hevc", "vp9"})

# Any positive limit below one frame stops decoding at the first frame that decord makes up.
_FAULT_LIMIT = 1e-9

# Everything that it was seen to raise on damaged files.
_ERRORS = (DECORDError, DECORDLimitReachedError, RuntimeError, StopIteration, AssertionError)


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
        # Read to the very end, the only place where it is certain that no frame was dropped.
        for index in range(len(timeline)):
            picture = reader.next()
            if slot < len(wanted) and wanted[slot] == index:
                resized: NDArray[np.uint8] = np.from_dlpack(_Exported(picture)).view(np.uint8)
                # It mistakes row padding for pixels at widths such as 16, 48 and 72.
                if resized.shape != (height, width, 3):
                    raise SourceError("corrupt", f"decord's frame has shape {resized.shape}")
                while slot < len(wanted) and wanted[slot] == index:
                    fit.place(resized, out[slot])
                    slot += 1
        _check_end(reader)
    except _ERRORS as error:
        raise SourceError("corrupt", f"decord stopped: {_last_line(error)}") from error
    if os.lseek(2, 0, os.SEEK_CUR):
        raise SourceError("corrupt", "decord's FFmpeg reported an error in the video stream")


class _Exported:
    """Lets numpy view a decord frame in place; decord's own conversion copies it twice."""

    def __init__(self, picture: Any) -> None:
        self._picture = picture

    def __dlpack__(self, **_: Any) -> Any:  # decord has no versions or copies, which numpy asks for
        return self._picture.to_dlpack()

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0  # kDLCPU


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


def _check_end(reader: decord.VideoReader) -> None:
    """A frame left over after the last one means that another was returned twice."""
    try:
        reader.next()
    except StopIteration:
        return
    raise SourceError("corrupt", "decord returned more frames than the file lists: some came twice")


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
