"""torchcodec, for jobs that name it. It needs FFmpeg's shared libraries."""

import av
import numpy as np
from numpy.typing import NDArray
from torchcodec.decoders import VideoDecoder

from tokpipe.errors import SourceError
from tokpipe.media.backends import Task
from tokpipe.media.framing import Painter


def decode(task: Task, out: NDArray[np.uint8]) -> None:
    """Decode in order, in one thread, and check every frame's time against the timeline.

    Raises:
        SourceError: ``unsupported`` for rotated pictures and several video streams, ``corrupt``
            for an error, or a number of frames or times other than listed.
    """
    timeline = task.timeline
    if not timeline.orientation.is_upright or timeline.num_video_streams != 1:
        raise SourceError(
            "unsupported", "torchcodec is not used for rotated videos or several video streams"
        )
    painter = Painter(task.framing)
    try:
        decoder = VideoDecoder(
            str(task.path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact"
        )
        if len(decoder) != len(timeline):
            raise SourceError(
                "corrupt", f"torchcodec counts {len(decoder)} frames, not {len(timeline)}"
            )
        first_s = decoder.get_frame_at(0).pts_seconds
        last = -1
        for slot, index in enumerate(task.wanted.tolist()):
            if index == last:
                out[slot] = out[slot - 1]
                continue
            frame = decoder.get_frame_at(index)
            off_s = frame.pts_seconds - first_s - float(timeline.times_s[index])
            if abs(off_s) > 1e-6 + timeline.tick_s / 2:
                raise SourceError("corrupt", f"torchcodec's frame {index} is off by {off_s:.3f} s")
            picture = av.VideoFrame.from_ndarray(frame.data.contiguous().numpy(), "rgb24")
            painter.paint(picture, out[slot])
            last = index
    except (RuntimeError, IndexError, ValueError) as error:
        raise SourceError("corrupt", f"torchcodec stopped: {error}") from error
