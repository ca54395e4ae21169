"""The process in which videos are decoded: started by ``VideoDecoder``, and killed by it at need.

It answers one request after another. Whatever a file does to it, its parent sees a message, an
end of the channel or a passed deadline, and nothing else.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import resource
import select
import signal
import socket
import sys
import traceback
from collections import OrderedDict
from pathlib import Path
from typing import Any

import av
import numpy as np

from tokpipe.errors import SourceError
from tokpipe.media import wire
from tokpipe.media.backends import BackendUnavailable, load_backend, pays
from tokpipe.media.container import check_regular_file, out_of_memory
from tokpipe.media.framing import Framing
from tokpipe.media.geometry import nearest_size
from tokpipe.media.resample import select_frames
from tokpipe.media.timeline import Timeline, read_timeline
from tokpipe.types import Cut

_F_SETSIG = 10  # Linux's <fcntl.h>; Python's fcntl module does not name it
_MAX_TIMELINES = 4
"""Of films of three hours, each takes about 20 MB."""


def main(channel_fd: int, lifeline_fd: int, memory_bytes: int) -> None:
    """Serve requests until the parent closes its end.

    Args:
        lifeline_fd: a pipe to which nothing is ever written; its other end closes when the
            parent dies.
        memory_bytes: address space to allow beyond what the process has at its start.
    """
    _die_with_parent(lifeline_fd)
    av.logging.set_level(None)
    _limit_address_space(memory_bytes)
    channel = socket.socket(fileno=channel_fd)
    timelines = _Timelines()
    with contextlib.suppress(wire.Closed):
        wire.send(channel, {"ready": os.getpid()})
        while True:
            request, spare = wire.receive(channel)
            # Anonymous memory has no name to leak under /dev/shm: it is gone with its last user,
            # however that one ends.
            memory = os.memfd_create("tokpipe-frames", os.MFD_CLOEXEC) if spare is None else spare
            try:
                wire.send(channel, {"started": request["path"]})
                os.lseek(2, 0, os.SEEK_SET)
                _answer(channel, request, memory, timelines)
            except wire.Closed:
                raise
            except Exception:  # a bug, or a failing disk: the parent raises it
                wire.send(channel, {"fault": traceback.format_exc()})
            finally:
                os.close(memory)


def _answer(
    channel: socket.socket, request: dict[str, Any], memory: int, timelines: _Timelines
) -> None:
    """Send, for one request, ``trying`` before each backend, and in the end one of ``decoded``,
    ``refused`` and ``unavailable``. With ``decoded`` goes ``memory``, which holds the frames.
    With ``only_probe``, ``probed`` is sent instead of trying any.
    """
    try:
        clip = _Clip(request, timelines)
    except (SourceError, MemoryError) as error:
        wire.send(channel, _refused(error, None, None))
        return
    if request["only_probe"]:
        wire.send(channel, {"probed": clip.probed})
        return
    verdict: dict[str, Any] = {}
    names = request["backends"]
    for name in names:
        if name != names[-1] and not pays(name, clip.share):
            continue
        wire.send(channel, {"trying": name, "num_segments": clip.num_segments})
        os.lseek(2, 0, os.SEEK_SET)
        try:
            clip.decode(name, memory)
        except BackendUnavailable as error:
            verdict = {"unavailable": str(error)}
        except (SourceError, MemoryError) as error:
            verdict = _refused(error, name, clip.num_segments)
        else:
            wire.send(channel, {"decoded": clip.description, "backend": name}, memory)
            return
    wire.send(channel, verdict)


def _refused(
    error: SourceError | MemoryError, backend: str | None, num_segments: int | None
) -> dict[str, Any]:
    refusal = error if isinstance(error, SourceError) else out_of_memory()
    cause = error.__cause__ if isinstance(error, SourceError) else error
    verdict = {
        "reason": refusal.reason,
        "message": str(refusal),
        "error": None if cause is None else type(cause).__name__,
    }
    return {"refused": {**verdict, "backend": backend, "num_segments": num_segments}}


class _Clip:
    """One request, as far as it is the same for every backend: which frames, what size."""

    def __init__(self, request: dict[str, Any], timelines: _Timelines) -> None:
        is_clip = request["segment_is"] == "clip"
        self.path = Path(request["path"])
        self.salvage: bool = request["salvage"]
        self.min_frames = max(1, request["min_clip_frames"])
        self.timeline = timelines.read(self.path, in_pieces=not is_clip, salvage=self.salvage)
        selection = select_frames(
            self.timeline.times_s,
            self.timeline.end_s,
            tick_s=self.timeline.tick_s,
            start_s=request["start_s"],
            end_s=request["end_s"],
            fps=request["fps"],
            segment=request["segment"],
            cut=Cut(*request["cut"]),
        )
        self.num_segments = selection.num_segments or None
        asked = request["num_segments"]
        if asked is not None and asked != selection.num_segments:
            raise SourceError(
                "source_changed",
                f"the source now gives {selection.num_segments} {request['segment_is']}s, and "
                f"gave {asked} when it was first read: the file was replaced",
            )
        self.wanted = selection.indices
        self.share = len(np.unique(self.wanted)) / len(self.timeline)
        clip_frames = len(self.wanted) if is_clip else selection.num_frames
        if clip_frames < request["min_clip_frames"]:
            raise SourceError(
                "too_short",
                f"the span has {clip_frames} frames of a video of "
                f"{self.timeline.end_s:.3f} s; sampling.min_clip_frames is "
                f"{request['min_clip_frames']}",
            )
        stored = self.timeline.height, self.timeline.width
        height, width = self.timeline.orientation.oriented(*stored)
        aspect = self.timeline.pixel_aspect
        size = nearest_size(
            [(rows, columns) for rows, columns in request["sizes"]],
            height,
            width,
            1 / aspect if self.timeline.orientation.transpose else aspect,
        )
        self.framing = Framing(size, request["fit"], aspect, self.timeline.orientation)
        self.shape = (len(self.wanted), *size, 3)
        self.probed = {
            "num_frames": selection.num_frames,
            "num_segments": selection.num_segments,
            "size": size,
        }
        self.description = {
            "shape": self.shape,
            "pts_s": self.timeline.times_s[self.wanted].tolist(),
            "fps": request["fps"] or self.timeline.average_fps,
            "num_segments": selection.num_segments,
            "damage": self.timeline.damage,
        }

    def decode(self, backend: str, memory: int) -> None:
        """Write the frames to the beginning of ``memory``, an open descriptor.

        A clip that ends early for damage is described so from then on.
        """
        if self.timeline.damage is not None and backend != "pyav":
            raise SourceError("truncated", f"{self.timeline.damage}; only PyAV keeps the rest")
        decoder = load_backend(backend)
        # Unmapped with its last reference: closing it by hand fails while a traceback has one.
        out = np.frombuffer(_mapped(memory, int(np.prod(self.shape))), np.uint8)
        out = out.reshape(self.shape)
        if self.framing.leaves_margins:
            out[:] = 0
        try:
            decoder.decode(self.path, self.timeline, self.wanted, self.framing, out)
        except SourceError as error:
            # By class name of our own, for PyAV is the only one that says how far it came.
            num = getattr(error, "num_written", 0) if backend == "pyav" else 0
            if not self.salvage or error.reason == "too_large" or num < self.min_frames:
                raise
            self._shorten(num, str(error))

    def _shorten(self, num_frames: int, why: str) -> None:
        """Describe the clip by its first frames alone."""
        damage = f"the clip ends after {num_frames} of {len(self.wanted)} frames: {why}"
        self.description |= {
            "shape": (num_frames, *self.shape[1:]),
            "pts_s": self.description["pts_s"][:num_frames],
            "damage": damage,
        }


def _mapped(memory: int, size: int) -> mmap.mmap:
    """Map ``size`` bytes of a descriptor, which grows if it has fewer."""
    flags = mmap.MAP_SHARED
    if os.fstat(memory).st_size >= size:
        # Another clip's: its pages are there, and are had at once for a fraction of the time that
        # asking for each takes. Pages of a new one come when they are written to.
        flags |= mmap.MAP_POPULATE
    else:
        os.ftruncate(memory, size)
    return mmap.mmap(memory, size, flags=flags)


class _Timelines:
    """Remembers the timelines of the last files, for the next segments of the same films."""

    def __init__(self) -> None:
        self._by_file: OrderedDict[tuple[Any, ...], Timeline] = OrderedDict()

    def read(self, path: Path, *, in_pieces: bool, salvage: bool) -> Timeline:
        check_regular_file(path)
        status = path.stat()
        key = (path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if key not in self._by_file:
            # Clips of a cut film come in a row, pieces of streamed ones by turns.
            while len(self._by_file) >= (_MAX_TIMELINES if in_pieces else 1):
                self._by_file.popitem(last=False)
            self._by_file[key] = read_timeline(path, salvage=salvage)
        self._by_file.move_to_end(key)
        return self._by_file[key]


def _die_with_parent(lifeline_fd: int) -> None:
    """Have the kernel kill this process when the parent's end of the pipe closes.

    Unlike PR_SET_PDEATHSIG this does not fire when merely the thread that started us ends, and
    unlike anything in Python it works while C code spins.
    """
    fcntl.fcntl(lifeline_fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline_fd, _F_SETSIG, signal.SIGKILL)
    flags = fcntl.fcntl(lifeline_fd, fcntl.F_GETFL)
    fcntl.fcntl(lifeline_fd, fcntl.F_SETFL, flags | os.O_ASYNC)
    if select.select([lifeline_fd], [], [], 0)[0]:  # it had closed before we were listening
        sys.exit(1)


def _limit_address_space(memory_bytes: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + memory_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
