"""Which frames of a video a clip shows, by true presentation times. Pure arithmetic."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokpipe.types import Cut

# Rounding error allowed in times, as a fraction of an output frame's duration.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Selection:
    """The frames of one segment of a row."""

    indices: NDArray[np.int64]
    """(T,) positions in the timeline, never decreasing; long frames are repeated."""
    num_segments: int  # Number of segments of the whole row; 0 if it shows no frame
    num_frames: int  # Frames of all segments together


def select_frames(
    times_s: NDArray[np.float64],
    video_end_s: float,
    *,
    tick_s: float,
    start_s: float | None,
    end_s: float | None,
    fps: float | None,
    segment: int,
    cut: Cut,
) -> Selection:
    """Choose the frames of segment ``segment`` of the span from ``start_s`` to ``end_s``.

    At ``fps``, output ``k`` is the frame on screen at ``start_s + k / fps``, for every ``k``
    before the end of the span and of the video. With ``fps=None``, each frame that appears
    within the span is taken once. Segment ``j`` has the outputs ``cut.bounds(j)``.

    Args:
        times_s: (N,) when each frame appears, increasing. A span that begins before the first
            frame begins with it: until then there is nothing on screen.
        video_end_s: when the last frame disappears.
        tick_s: resolution of those times. A container that counts in milliseconds shifts frames
            by up to one, which must not cost a frame.
    """
    first_s = float(times_s[0])
    start = first_s if start_s is None else max(start_s, first_s)
    end = video_end_s if end_s is None else min(end_s, video_end_s)
    gap_s = (video_end_s - first_s) / len(times_s)
    period_s = gap_s if fps is None else 1 / fps
    # Rounding moves a frame and the start by a tick in all. A tick of half a frame is no rounding.
    slack_s = tick_s if 2 * tick_s < min(gap_s, period_s) else 0.0
    slack_s += _ROUNDING * period_s
    first, last = cut.bounds(segment)
    if fps is None:
        low, high = np.searchsorted(times_s, [start - slack_s, end - slack_s], side="left")
        count = max(0, int(high - low))
        indices = np.arange(low + min(first, count), low + min(last, count))
    else:
        count = max(0, math.ceil((end - start - 2 * slack_s) * fps))  # a duration is rounded, too
        outputs = np.arange(min(first, count), min(last, count))
        at = start + outputs / fps + slack_s
        indices = np.maximum(np.searchsorted(times_s, at, side="right") - 1, 0)
    return Selection(indices.astype(np.int64), cut.num_parts(count), count)
