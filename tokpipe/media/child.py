"""The process that decodes videos. ``VideoDecoder`` starts it, and kills it when it must.

The child answers one request after another. No file can do more to the parent than send a message,
close the channel or make it miss a deadline.
"""

import contextlib
import fcntl
import functools
import logging
import math
import mmap
import os
import resource
import select
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import av
import numpy as np

from tokpipe.errors import ConfigError, SourceError
from tokpipe.media import wire
from tokpipe.media.backends import Task, load_backend, versions_of
from tokpipe.media.container import check_regular_file, kept_open
from tokpipe.media.framing import Framing
from tokpipe.media.geometry import nearest_size
from tokpipe.media.partial import PartialPath
from tokpipe.media.timeline import Selection, Timeline, read_timeline
from tokpipe.types import VIDEO, Cut, Media

_F_SETSIG = 10  # from Linux's <fcntl.h>; Python's fcntl module lacks it
_MAX_TIMELINES = 4  # The timeline of a three-hour video takes about 20 MB


def main(channel_fd: int, lifeline_fd: int, memory_bytes: int, backends: list[str]) -> None:
    """Serve requests until the parent closes its end of the channel.

    The first message has the versions of ``backends``, or the problem with loading one.
    ``memory_bytes`` is the address space to allow on top of what the process starts with.
    """
    _die_with_parent(lifeline_fd)
    av.logging.set_level(av.logging.ERROR)  # so that exceptions have what was logged last
    logging.getLogger("libav").addHandler(logging.NullHandler())
    channel = socket.socket(fileno=channel_fd)
    with contextlib.suppress(ConnectionError):
        try:
            wire.send(channel, {"versions": versions_of(backends)})
        except ConfigError as error:
            wire.send(channel, {"problem": str(error)})
            return
        _limit_address_space(memory_bytes)
        memory = _Memory()
        while True:
            request, fetched = wire.receive(channel)
            try:
                wire.send(channel, {"trying": {}})
                os.lseek(2, 0, os.SEEK_SET)
                if fetched is not None:  # a file without a name on disk
                    request["path"] = f"/proc/self/fd/{fetched}"
                _answer_partly(channel, request, memory)
            except ConnectionError:
                raise
            except (SourceError, MemoryError) as error:
                wire.send(channel, {"rejected": _fields(error)})
            except Exception:  # a bug or a failing disk, which the parent raises
                wire.send(channel, {"fault": traceback.format_exc()[-10_000:]})
            finally:
                if fetched is not None:
                    os.close(fetched)


class _Memory:
    """Memory for answers, which the parent copies before it asks again: for the kernel, to find
    other pages for a frame is as much work as to decode a small one."""

    def __init__(self) -> None:
        # Not in /dev/shm: anonymous memory goes with its last user, however that user ends.
        self.fd = os.memfd_create("tokpipe-frames", os.MFD_CLOEXEC)
        self._mapped: mmap.mmap | bytes = b""

    def take(self, size: int) -> mmap.mmap | bytes:
        """Return memory of just this size, with whatever was left in it."""
        if size != len(self._mapped):
            # The mapping goes with its last reference: close() fails while a traceback has one.
            self._mapped = b""
            os.ftruncate(self.fd, size)
            # All pages at once, which is far faster than one page fault each.
            self._mapped = mmap.mmap(self.fd, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        return self._mapped


def _answer_partly(channel: socket.socket, request: dict[str, Any], memory: _Memory) -> None:
    """Answer from the parts of a file that are needed; if anything is unusual, from all of it."""
    if request["is_partial"]:
        path = PartialPath(request["path"])
        path.channel = channel
        if Media(*request["media"]) == VIDEO and path.is_indexed():
            try:
                _answer(channel, {**request, "path": path, "salvage": False}, memory)
                return
            except SourceError as error:
                if error.reason == "too_short":
                    raise
        path.ask(0, path.stat().st_size)
    _answer(channel, {**request, "path": Path(request["path"])}, memory)


def _answer(channel: socket.socket, request: dict[str, Any], memory: _Memory) -> None:
    """Send ``trying`` before a backend decodes, then ``done``; or raise why there are no frames.

    ``memory``, sent with ``done``, has the times, then the frames, or their end (``only_probe``).
    """
    path, file_name = request["path"], request["file_name"]
    asked = file_name, request["salvage"], Media(*request["media"])
    version = *check_regular_file(path), isinstance(path, PartialPath)
    timeline = _timeline(path, *asked, version)
    selection = _select(timeline, request)
    framing = _framing(timeline, request)
    if request["only_probe"]:
        framing.check(timeline.tags)
        rows, columns, aspect = timeline.shown
        ends_s = np.append(timeline.times_s, timeline.end_s)
        times_s = ends_s[np.append(selection.indices, selection.indices[-1:] + 1)]
        np.frombuffer(memory.take(times_s.nbytes))[:] = times_s
        probed = {
            "num_segments": selection.num_segments,
            "num_frames": selection.num_frames,
            "size": framing.size,
            "shown": (rows, columns, str(aspect)),
            "source_fps": timeline.average_fps,
            "is_picture": timeline.is_picture,
        }
        wire.send(channel, {"done": probed}, memory.fd)
        return
    name = "pillow" if timeline.is_picture else request["backend"]
    trying = {"backend": name, "num_segments": selection.num_segments or None}
    wire.send(channel, {"trying": trying})
    os.lseek(2, 0, os.SEEK_SET)
    task = Task(path, timeline, selection.indices, framing, file_name=file_name)
    decoded = {
        "num_segments": selection.num_segments,
        "fps": request["fps"] or timeline.average_fps,
        "backend": name,
        **_decode(task, name, memory, request["min_clip_frames"] if request["salvage"] else None),
    }
    wire.send(channel, {"done": decoded}, memory.fd)


def _fields(error: SourceError | MemoryError) -> dict[str, str | None]:
    """What the parent raises; it knows which backend was tried."""
    if isinstance(error, SourceError):
        reason, message, cause = error.reason, str(error), error.__cause__
    else:
        reason, cause = "too_large", error
        message = "decoding needs more memory than decode.memory_bytes lets the child use"
    name = None if cause is None else type(cause).__name__
    return {"reason": reason, "message": message, "error": name}


def _select(timeline: Timeline, request: dict[str, Any]) -> Selection:
    span = {name: request[name] for name in ("start_s", "end_s", "fps", "segment")}
    selection = timeline.select(**span, cut=Cut(*request["cut"]))
    num_segments, expected = selection.num_segments, request["num_segments"]
    if expected not in (None, num_segments):
        found = f"the source now has {num_segments} {request['segment_is']}s and had {expected}"
        raise SourceError("changed", f"{found} when it was first read: the file was replaced")
    is_clip = request["segment_is"] == "clip"
    clip_frames = len(selection.indices) if is_clip else selection.num_frames
    if clip_frames < request["min_clip_frames"] and not timeline.is_picture:
        found = f"the span has {clip_frames} frames of a video of {timeline.end_s:.3f} s"
        least = f"sampling.min_clip_frames is {request['min_clip_frames']}"
        raise SourceError("too_short", f"{found}; {least}")
    return selection


def _framing(timeline: Timeline, request: dict[str, Any]) -> Framing:
    size = nearest_size(list(map(tuple, request["sizes"])), *timeline.shown)
    stored = timeline.pixel_aspect, timeline.orientation, timeline.crop
    chosen = {name: request[name] for name in ("matrix", "hdr", "background", "deinterlace")}
    return Framing(size, request["fit"], *stored, **chosen, has_fields=timeline.has_fields)


def _decode(task: Task, backend: str, memory: _Memory, least: int | None) -> dict[str, Any]:
    """Write times and frames to ``memory``, and describe them.

    If damage ends the clip early, it is shortened, but not below ``least`` frames: None keeps none.
    """
    wanted, framing, damage = task.wanted, task.framing, task.timeline.damage
    if damage is not None and backend != "pyav":
        raise SourceError("truncated", f"{damage}; only PyAV keeps the rest")
    decoder = load_backend(backend)
    if backend != "pyav":
        kept_open.close()
    times_s, shape = task.timeline.times_s[wanted], (len(wanted), *framing.size, 3)
    taken = memory.take(times_s.nbytes + math.prod(shape))
    np.frombuffer(taken, count=len(wanted))[:] = times_s
    try:
        decoder.decode(task, np.ndarray(shape, np.uint8, taken, times_s.nbytes))
    except SourceError as error:
        num = task.num_written
        if least is None or num < least or error.reason == "hdr":
            raise
        shape = (num, *shape[1:])
        damage = f"the clip ends after {num} of {len(wanted)} frames: {error}"
    marks = task.marks + ["interlaced"] * any(tags.is_interlaced for tags in task.painted)
    hdr = "tonemapped" if framing.hdr == "tonemap" else "hdr"
    marks += [hdr] * any(tags.is_hdr for tags in task.painted)
    return {"shape": shape, "offset": times_s.nbytes, "damage": damage, "marks": marks}


@functools.lru_cache(_MAX_TIMELINES)
def _timeline(
    path: Path, file_name: str, salvage: bool, media: Media, version: tuple[int, ...]
) -> Timeline:
    is_video = media.media == "video"
    picture = None if is_video else load_backend("pillow").find_picture(path, media)
    return picture or read_timeline(path, file_name, salvage=salvage)


def _die_with_parent(lifeline_fd: int) -> None:
    """Have the kernel kill this process when the parent's end of the pipe closes.

    Nothing is ever written to the pipe. PR_SET_PDEATHSIG would fire as soon as the thread that
    started this process ends. Anything in Python would fail while C code holds the interpreter.
    """
    fcntl.fcntl(lifeline_fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline_fd, _F_SETSIG, signal.SIGKILL)
    flags = fcntl.fcntl(lifeline_fd, fcntl.F_GETFL)
    fcntl.fcntl(lifeline_fd, fcntl.F_SETFL, flags | os.O_ASYNC)
    if select.select([lifeline_fd], [], [], 0)[0]:  # the parent died before the signal was set up
        sys.exit(1)


def _limit_address_space(memory_bytes: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + memory_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
