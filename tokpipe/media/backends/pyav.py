"""PyAV: FFmpeg's own libraries and every codec. It is tried last, so its answer is final."""

import contextlib
from bisect import bisect_left
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from tokpipe.errors import SourceError
from tokpipe.media.backends import Task
from tokpipe.media.container import damaged, open_video
from tokpipe.media.framing import Painter
from tokpipe.media.partial import PartialPath, fetch_span
from tokpipe.media.timeline import decode_frames


def versions() -> dict[str, str]:
    libraries = {f"av {name}": ".".join(map(str, v)) for name, v in av.library_versions.items()}
    return {"av": av.__version__, **libraries}


def decode(task: Task, out: NDArray[np.uint8]) -> None:
    """Decode in order, from the key frame before the first wanted frame to the last wanted one.
    Every frame is checked against the timeline. The same file always stops at the same frame."""
    keys, pts = task.timeline.key_frames, task.timeline.pts
    if pts is not None and len(keys := keys[keys[:, 0] <= pts[task.wanted[0]]]) > 1:
        entry = keys[-1].tolist()
        # Not every key frame is a clean start, so an error is decided from an earlier one, and
        # then from the beginning; but by the whole file if it is not here.
        with contextlib.suppress(*[SourceError] * (not isinstance(task.path, PartialPath))):
            num_errors, _ = av.logging.get_last_error()
            _decode_from(entry, task, out, is_exact=True)
            if av.logging.get_last_error()[0] == num_errors:
                return None
            raise SourceError("corrupt", "FFmpeg reported an error")
        with contextlib.suppress(SourceError):
            return _decode_from(entry, task, out)
    return _decode_from(None, task, out)


def _decode_from(
    entry: list[int] | None, task: Task, out: NDArray[np.uint8], *, is_exact: bool = False
) -> None:
    """``entry``: PTS and DTS of the key frame to begin with; None for the beginning. In MP4 the
    one before it leads there, unless ``is_exact``."""
    painter = Painter(task.framing)
    task.painted.clear()
    task.num_written = 0
    timeline, wanted = task.timeline, task.wanted
    with open_video(task.path, task.file_name) as (container, stream):
        index = 0
        frames = decode_frames(container, stream)
        if timeline.pts is not None:
            fetch_span(task.path, stream, entry, timeline.pts[wanted[-1]])
        try:
            if entry is not None:
                assert timeline.pts is not None
                pts, dts = entry
                if is_exact:
                    container.seek(pts, stream=stream, backward=True)
                    packet = next(container.demux(stream), None)
                    now = packet and [packet.pts, packet.dts, packet.is_keyframe]
                    if now != [*entry, True]:
                        raise SourceError("corrupt", "seeking does not lead to the key frame")
                container.seek(pts if is_exact else dts, stream=stream, backward=True)
                index = bisect_left(timeline.pts, pts)
                frames = (frame for frame in frames if frame.pts is None or frame.pts >= pts)
            for frame in frames:
                _check_place(frame, index, timeline.pts)
                first = task.num_written
                if index == wanted[first]:
                    task.painted.add(painter.paint(frame, out[first]))
                    task.num_written = end = int(np.searchsorted(wanted, index, side="right"))
                    out[first + 1 : end] = out[first]
                    if end == len(wanted):
                        return
                index += 1
            found = f"decoding ends after frame {index - 1}; the file lists {len(timeline)} frames"
            raise SourceError("corrupt", found)
        except av.FFmpegError as error:
            raise damaged(f"frame {index} cannot be converted", error) from error


def _check_place(frame: Any, index: int, pts: tuple[int, ...] | None) -> None:
    listed = frame.pts if pts is None else pts[index] if index < len(pts) else None
    if frame.pts != listed:
        found = f"frame {index} has timestamp {frame.pts}, but the file lists {listed}"
        raise SourceError("corrupt", f"{found}: frames are missing or damaged")
