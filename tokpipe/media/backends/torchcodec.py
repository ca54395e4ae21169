"""torchcodec: the third backend, for jobs that name it. Needs FFmpeg's shared libraries."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from torchcodec.decoders import VideoDecoder

from tokpipe.errors import SourceError
from tokpipe.media.framing import Framing, Painter
from tokpipe.media.timeline import Timeline


def decode(
    path: Path,
    timeline: Timeline,
    wanted: NDArray[np.int64],
    framing: Framing,
    out: NDArray[np.uint8],
) -> None:
    """Decode in order, one thread, and hold every frame's time against the timeline.

    Raises:
        SourceError: ``unsupported`` for rotated pictures and several video streams, ``corrupt``
            for an error, or another number of frames or other times than listed.
    """
    if not timeline.orientation.is_upright or timeline.num_video_streams != 1:
        raise SourceError(
            "unsupported", "torchcodec is not used for rotated videos or several video streams"
        )
    painter = Painter(framing)
    try:
        decoder = VideoDecoder(
            str(path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact"
        )
        if len(decoder) != len(timeline):
            raise SourceError(
                "corrupt", f"torchcodec counts {len(decoder)} frames, not {len(timeline)}"
            )
        first_s = decoder.get_frame_at(0).pts_seconds
        last = -1
        for slot, index in enumerate(wanted.tolist()):
            if index == last:
                out[slot] = out[slot - 1]
                continue
            frame = decoder.get_frame_at(index)
            off_s = frame.pts_seconds - first_s - float(timeline.times_s[index])
            if abs(off_s) > 1e-6 + timeline.tick_s / 2:
                raise SourceError(
                    "corrupt", f"torchcodec's frame {index} is {off_s:.3f} s from its place"
                )
            picture = av.VideoFrame.from_ndarray(frame.data.contiguous().numpy(), "rgb24")
            painter.paint(picture, out[slot])
            last = index
    except (RuntimeError, IndexError, ValueError) as error:
        raise SourceError("corrupt", f"torchcodec stopped: {error}") from error
