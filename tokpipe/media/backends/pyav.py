"""PyAV: FFmpeg's own libraries and every codec. It is tried last, so its answer is final."""

import contextlib
from bisect import bisect_left
from itertools import chain
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from tokpipe.errors import SourceError
from tokpipe.media.backends import Task
from tokpipe.media.container import check_regular_file, damaged, kept_open, open_video
from tokpipe.media.framing import Painter
from tokpipe.media.partial import PartialPath, fetch_span
from tokpipe.media.timeline import Timeline, decode_frames

_Entry = tuple[int, int]  # PTS and DTS of a key frame
_WORTH_A_SEEK = 8  # Frames: the decoder may have read as many ahead
_kept: "dict[tuple[object, ...], _Video]" = {}  # What is in ``kept_open``, by version


def versions() -> dict[str, str]:
    libraries = {f"av {name}": ".".join(map(str, v)) for name, v in av.library_versions.items()}
    return {"av": av.__version__, **libraries}


def decode(task: Task, out: NDArray[np.uint8]) -> None:
    """Decode the wanted frames in order, and of the others as few as their pixels allow.

    Every frame is checked against the timeline. After any error, also in a frame that nobody wants,
    all are decoded: from the key frame before the first wanted one, and then, since not every key
    frame is a clean start, from the beginning. So the same file always stops at the same frame.
    The video stays open. The next request goes on from there if it would get there in any case.
    Of a copy with holes, an error is final: all of it is fetched then, and decides.
    """
    is_partial = isinstance(task.path, PartialPath)
    version = *check_regular_file(task.path), task.file_name, is_partial
    first, entry = int(task.wanted[0]), _entry(task.timeline, int(task.wanted[0]))
    kept = _kept.pop(version, None)  # not used again if anything goes wrong
    if kept and kept.entry == entry and kept.index <= first:
        with contextlib.suppress(SourceError):
            kept.want(task, entry)
            return _paint_sparse(version, kept, task, out)
    with contextlib.suppress(*[SourceError] * (not is_partial)):
        opened = kept_open.enter_context(open_video(task.path, task.file_name))
        kept_open.callback(_kept.clear)
        video = _Video(opened, task, entry, sparse=True)
        return _paint_sparse(version, video, task, out)
    if entry is not None:
        with contextlib.suppress(SourceError), open_video(task.path, task.file_name) as opened:
            return _paint(_Video(opened, task, entry), task, out)
    with open_video(task.path, task.file_name) as opened:
        return _paint(_Video(opened, task, None), task, out)


class _Video:
    """An open video, which is decoded forward; sparse: without what no wanted frame depends on."""

    def __init__(self, opened: Any, task: Task, entry: _Entry | None, sparse: bool = False) -> None:
        (self._container, self._stream), self._sparse = opened, sparse
        self._wanted: list[int] = []  # PTS, if others can be left out
        self._num_errors, self.log = av.logging.get_last_error()[0], []  # type: int, list[Any]
        self.want(task, entry)
        self._start(entry)

    def want(self, task: Task, entry: _Entry | None) -> None:
        """Take the frames to come, which are decoded from ``entry``, from ``task``."""
        self._timeline, self._pts = task.timeline, task.timeline.pts or ()
        self.is_whole = task.wanted[-1] < len(set(task.wanted))
        # Packets must be frames. VP9's frames may change how later ones are decoded though none
        # refers to them, and FFmpeg tells AV1's apart only for a whole stream.
        if self._sparse and task.timeline.from_packets and task.timeline.codec in ("h264", "hevc"):
            self._wanted[:] = sorted({self._pts[index] for index in task.wanted})
        if self._pts:
            fetch_span(task.path, self._stream, entry, self._pts[task.wanted[-1]])

    def _start(self, entry: _Entry | None) -> None:
        self.entry, self.index = entry, 0  # where decoding begins, and the next frame
        frames = decode_frames(self._container, self._stream, None, self._wanted)
        if entry is not None:
            pts, dts = entry
            # In MP4 with B-frames, DTS leads one key frame too far back, and PTS maybe too far on.
            self._container.seek(pts if self._sparse else dts, stream=self._stream, backward=True)
            self.index = bisect_left(self._pts, pts)
            frames = (one for one in frames if one.pts is None or one.pts >= pts)
            if self._sparse:
                frames = chain([first := next(frames, None)], frames)
                if first is None or not first.key_frame:
                    raise SourceError("corrupt", f"frame {self.index} should be a key frame")
                self.check_log()
        self._frames = frames

    def check_log(self) -> None:
        """If frames were left out, raise on what FFmpeg reports, such as one that others need."""
        is_gap = any(text.startswith("Frame num gap") for _, _, text in self.log)
        self.log.clear()
        is_bad = is_gap or av.logging.get_last_error()[0] != self._num_errors
        if is_bad and (self.entry is not None or (self._wanted and not self.is_whole)):
            raise SourceError("corrupt", "FFmpeg reported an error")

    def frame(self, index: int) -> Any:
        """Decode up to a frame."""
        entry = _entry(self._timeline, index) if self._sparse else None
        if entry and bisect_left(self._pts, entry[0]) >= self.index + _WORTH_A_SEEK:
            self._start(entry)
        for frame in self._frames:
            while self._wanted and self.index < index and frame.pts != self._pts[self.index]:
                self.index += 1
            listed = self._pts[self.index] if self.index < len(self._pts) else None
            if frame.pts != listed and self._timeline.pts is not None:
                found = f"frame {self.index} has timestamp {frame.pts}, but the file lists {listed}"
                raise SourceError("corrupt", f"{found}: frames are missing or damaged")
            self.index += 1
            if self.index > index:
                self.check_log()
                return frame
        found = f"decoding ends after frame {self.index - 1}"
        raise SourceError("corrupt", f"{found}; the file lists {len(self._timeline)} frames")


def _entry(timeline: Timeline, index: int) -> _Entry | None:
    """The last key frame at or before a frame; None for the beginning."""
    keys, pts = timeline.key_frames, timeline.pts
    at = 0 if pts is None else int(np.searchsorted(keys[:, 0], pts[index], side="right")) - 1
    return (int(keys[at, 0]), int(keys[at, 1])) if at > 0 else None


def _paint_sparse(
    version: tuple[object, ...], video: _Video, task: Task, out: NDArray[np.uint8]
) -> None:
    with contextlib.ExitStack() as after, av.logging.Capture() as video.log:
        after.callback(av.logging.set_level, av.logging.get_level())
        if video.entry is not None or not video.is_whole:
            av.logging.set_level(av.logging.DEBUG)  # H.264 lacks a frame that said nobody needs it
        _paint(video, task, out)
    _kept[version] = video


def _paint(video: _Video, task: Task, out: NDArray[np.uint8]) -> None:
    painter, wanted = Painter(task.framing), task.wanted
    task.painted.clear()
    task.num_written = 0
    try:
        while (first := task.num_written) < len(wanted):
            task.painted.add(painter.paint(video.frame(int(wanted[first])), out[first]))
            task.num_written = end = int(np.searchsorted(wanted, wanted[first], side="right"))
            out[first + 1 : end] = out[first]
    except av.FFmpegError as error:
        raise damaged(f"frame {wanted[first]} cannot be converted", error) from error
