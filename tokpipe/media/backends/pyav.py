"""PyAV: FFmpeg's own libraries, every codec, and the last word on every file."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from tokpipe.errors import SourceError
from tokpipe.media.container import damaged, open_video
from tokpipe.media.framing import Framing, Painter
from tokpipe.media.timeline import KeyFrame, Timeline, decode_frames


class Stopped(SourceError):
    """Decoding met damage. The first ``num_written`` frames of ``out`` are right, and whole."""

    def __init__(self, error: SourceError, num_written: int) -> None:
        super().__init__(error.reason, str(error))
        self.__cause__ = error.__cause__
        self.num_written = num_written


def decode(
    path: Path,
    timeline: Timeline,
    wanted: NDArray[np.int64],
    framing: Framing,
    out: NDArray[np.uint8],
) -> None:
    """Decode in order, from the key frame before the first wanted frame to the last wanted one.

    Every frame on the way is held against the timeline; only wanted ones are converted.

    Raises:
        SourceError: an error, a damaged frame, or one that is not where the timeline has it. A
            ``Stopped`` if frames before it were written; the same file stops at the same frame.
    """
    entry = _entry(timeline, int(wanted[0]))
    if entry is not None:
        try:
            return _decode_from(entry, path, timeline, wanted, framing, out)
        except SourceError as error:
            if error.reason == "too_large":
                raise
            # Not every key frame is a clean start: decide from the beginning.
            if framing.leaves_margins:
                out[:] = 0
    return _decode_from(None, path, timeline, wanted, framing, out)


def _entry(timeline: Timeline, first_wanted: int) -> KeyFrame | None:
    """The last key frame at or before a frame; None for the beginning of the file."""
    if timeline.pts is None:
        return None
    at = bisect_right(timeline.key_frames, timeline.pts[first_wanted], key=lambda key: key.pts)
    return timeline.key_frames[at - 1] if at > 1 else None


def _decode_from(
    entry: KeyFrame | None,
    path: Path,
    timeline: Timeline,
    wanted: NDArray[np.int64],
    framing: Framing,
    out: NDArray[np.uint8],
) -> None:
    painter = Painter(framing)
    with open_video(path) as (container, stream):
        index = 0
        frames = decode_frames(container, stream)
        if entry is not None:
            assert timeline.pts is not None
            container.seek(entry.dts, stream=stream, backward=True)
            index = bisect_left(timeline.pts, entry.pts)
            frames = (frame for frame in frames if frame.pts is None or frame.pts >= entry.pts)
        slot = 0
        try:
            for frame in frames:
                _check_place(frame, index, timeline)
                if index == wanted[slot]:
                    try:
                        painter.paint(frame, out[slot])
                    except (av.FFmpegError, MemoryError) as error:
                        raise damaged(f"frame {index} cannot be converted", error) from error
                    slot += 1
                    while slot < len(wanted) and wanted[slot] == index:
                        out[slot] = out[slot - 1]
                        slot += 1
                    if slot == len(wanted):
                        return
                index += 1
            raise SourceError(
                "corrupt",
                f"decoding ends after frame {index - 1}, of {len(timeline)} frames that the file "
                "lists",
            )
        except SourceError as error:
            raise Stopped(error, slot) from error.__cause__


def _check_place(frame: Any, index: int, timeline: Timeline) -> None:
    if timeline.pts is None:
        return
    listed = timeline.pts[index] if index < len(timeline) else None
    if frame.pts != listed:
        raise SourceError(
            "corrupt",
            f"frame {index} is shown at time stamp {frame.pts}, where the file lists {listed}: "
            "frames are missing or damaged",
        )
