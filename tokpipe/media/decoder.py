"""Decodes clips in a child process that can be killed, for hostile files do hang and crash."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import logging
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokpipe.config.job import DecodeConfig, FramesConfig, SamplingConfig
from tokpipe.errors import ConfigError, RuntimeFault, SourceError
from tokpipe.media import wire
from tokpipe.types import Cut

_log = logging.getLogger(__name__)

_START_TIMEOUT_S = 60.0
_EXIT_TIMEOUT_S = 5.0
_MAX_OUTSIDE_KILLS = 3
"""Times that a clip's child may be killed from outside (out of memory, an operator) in a row."""
_STDERR_BYTES = 64 * 1024
_MAX_SPARE_BYTES = 2**28
"""Of memory that waits for the next clip: two of the longest clips that a plan makes."""
_MAX_SPARES = 16


@dataclass(frozen=True, slots=True)
class Video:
    """The frames of one clip, and what is known of its source."""

    frames: NDArray[np.uint8]
    """(T, H, W, 3) RGB, in memory of its own."""
    pts_s: NDArray[np.float64]
    """(T,) true presentation times, from the first shown frame of the source."""
    fps: float
    """Frames per second: the job's, or the average of the source."""
    num_segments: int
    """How many segments the row gives: clips, or pieces of its one clip."""
    backend: str
    damage: str | None = None
    """What is missing, under ``decode.on_damage: mark``."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What a span of a video will give, as far as its container tells."""

    num_frames: int
    """Of all segments together."""
    num_segments: int
    size: tuple[int, int]
    """(height, width) of the frames."""


class Refused(SourceError):
    """A clip that cannot be decoded, through its own fault.

    ``backend`` gave the verdict and ``num_segments`` is known, if it came to that. ``error`` is
    the class of the exception behind it, or the signal; None where no library complained.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        backend: str | None,
        num_segments: int | None,
        error: str | None = None,
    ) -> None:
        super().__init__(reason, message)
        self.backend = backend
        self.num_segments = num_segments
        self.error = error


class VideoDecoder:
    """One decoding child, started again whenever it had to be killed.

    Gives the same frames for the same file and span, whatever it decoded before. To be used by
    one thread at a time; it need not always be the same one.

    Args:
        pieces: how a clip is decoded in pieces, when it is streamed: a segment is then a piece of
            the row's one clip. Without, a segment is a clip of ``sampling.max_clip_frames``.
        backends: names to try in order, instead of what ``decode.backend`` says: short names, or
            import paths of modules with the function of ``tokpipe.media.backends.Backend``.

    Raises:
        ConfigError: the backend that the job names is not installed.
    """

    def __init__(
        self,
        decode: DecodeConfig,
        sampling: SamplingConfig,
        frames: FramesConfig,
        *,
        pieces: Cut | None = None,
        backends: Sequence[str] | None = None,
    ) -> None:
        self._config = decode
        self._backends = (
            _backends_of(decode, in_pieces=pieces is not None)
            if backends is None
            else tuple(backends)
        )
        cut = pieces or Cut(sampling.max_clip_frames, sampling.max_clip_frames)
        self._settings = {
            "fps": sampling.fps,
            "cut": (cut.first, cut.later),
            "segment_is": "piece" if pieces else "clip",
            "min_clip_frames": sampling.min_clip_frames,
            "sizes": frames.sizes,
            "fit": frames.fit,
            "salvage": decode.on_damage == "mark",
        }
        self._child: _Child | None = None
        self._spares = _Spares()

    @property
    def child_pid(self) -> int | None:
        """The process that decodes, once there is one."""
        return None if self._child is None else self._child.pid

    def decode(
        self,
        path: Path,
        *,
        start_s: float | None = None,
        end_s: float | None = None,
        segment: int = 0,
        num_segments: int | None = None,
    ) -> Video:
        """Decode one segment of a span of a local file.

        Raises:
            SourceError: a ``Refused``: the clip cannot be had, by its own fault.
            ConfigError: a library of the backend that the job names does not load.
            RuntimeFault: the child does not start, or keeps being killed from outside.
        """
        video = self._answer(
            path,
            start_s=start_s,
            end_s=end_s,
            segment=segment,
            num_segments=num_segments,
            only_probe=False,
        )
        assert isinstance(video, Video)
        return video

    def probe(
        self, path: Path, *, start_s: float | None = None, end_s: float | None = None
    ) -> Probe:
        """Read the container of a local file, and decode nothing.

        Raises:
            As ``decode``; a file whose damage only decoding shows is taken to be sound.
        """
        probe = self._answer(
            path, start_s=start_s, end_s=end_s, segment=0, num_segments=None, only_probe=True
        )
        assert isinstance(probe, Probe)
        return probe

    def _answer(self, path: Path, **asked: Any) -> Video | Probe:
        """Ask one child after another until one answers, or no backend is left to try."""
        request = {**self._settings, "path": os.fspath(path.absolute()), **asked}
        backends = self._backends
        outside_kills = 0
        while True:
            attempt = self._attempt({**request, "backends": backends})
            if isinstance(attempt, Video | Probe):
                return attempt
            if attempt.is_innocent:
                outside_kills += 1
                if outside_kills == _MAX_OUTSIDE_KILLS:
                    raise RuntimeFault(
                        f"the decoding child was killed {outside_kills} times from outside while "
                        f"it read {path}. Most often the node ran out of memory: lower "
                        "decode.memory_bytes, or give decode actors more room."
                    )
                continue
            # The next backend gets a process that nothing has happened to.
            rest = backends[backends.index(attempt.backend) + 1 :] if attempt.backend else ()
            if not rest:
                raise Refused(
                    attempt.reason,
                    attempt.message,
                    attempt.backend,
                    attempt.num_segments,
                    attempt.error,
                )
            _log.info("%s: %s by %s; trying %s", path, attempt.reason, attempt.backend, rest[0])
            backends = rest

    def close(self) -> None:
        """End the child and let go of its memory. The next ``decode`` starts another."""
        self._spares.close()
        self._spares = _Spares()
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _attempt(self, request: dict[str, Any]) -> Video | Probe | _Lost:
        """Have one child work on a request until it answers or is lost."""
        if self._child is None:
            self._child = _Child(self._config.memory_bytes)
        child = self._child
        backend: str | None = None
        num_segments: int | None = None
        has_started = False
        try:
            child.send(request, self._spares.take())
            while True:
                answer, fd = child.receive(self._config.deadline_s)
                if "started" in answer:
                    has_started = True
                elif "trying" in answer:
                    backend, num_segments = answer["trying"], answer["num_segments"]
                else:
                    break
        except TimeoutError:
            self.close()
            return _Lost(
                "timeout",
                f"decoding took longer than decode.deadline_s = {self._config.deadline_s:g} s",
                backend,
                num_segments,
                "TimeoutError",
                is_innocent=False,
            )
        except wire.Closed:
            status, stderr = child.collect()
            self._child = None
            return _Lost(
                "crashed",
                f"the decoding process died ({_how_it_died(status)})" + (stderr and f": {stderr}"),
                backend,
                num_segments,
                _how_it_died(status) if status is not None and status < 0 else None,
                is_innocent=status == -signal.SIGKILL or not has_started,
            )
        except BaseException:
            self.close()  # an answer may still be on its way
            raise
        if "decoded" in answer and fd is not None:
            return _video(answer["decoded"], answer["backend"], self._spares.lend(fd))
        if "probed" in answer:
            probed = answer["probed"]
            return Probe(**{**probed, "size": tuple(probed["size"])})
        if "refused" in answer:
            raise Refused(**answer["refused"])
        if "unavailable" in answer:
            raise ConfigError(
                f"decode.backend: {answer['unavailable']}. No clip can be decoded with it. "
                "Install it and the libraries it needs on every node, or name another backend."
            )
        self.close()
        raise RuntimeError(f"the decoding child failed on {request['path']}:\n{answer['fault']}")


@dataclass(frozen=True, slots=True)
class _Lost:
    """A child that ended without an answer."""

    reason: str
    message: str
    backend: str | None
    num_segments: int | None
    error: str | None
    """The class name of the error, or the name of the signal that ended it."""
    is_innocent: bool
    """The clip had no part in it: killed from outside, or dead before it saw the clip."""


class _Child:
    """The process of ``tokpipe.media.child``, and the ways to it.

    Raises:
        RuntimeFault: it does not come up.
    """

    def __init__(self, memory_bytes: int) -> None:
        self._channel, theirs = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        # A file of fixed size takes what libraries print: no pipe to drain, no disk to fill. What
        # does not fit is lost.
        self._stderr = os.memfd_create("tokpipe-stderr", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self._stderr, _STDERR_BYTES)
        fcntl.fcntl(self._stderr, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
        code = (
            "from tokpipe.media.child import main; "
            f"main({theirs.fileno()}, {lifeline}, {memory_bytes})"
        )
        try:
            # A new program, not a fork: threads of the actor's libraries hold locks.
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                pass_fds=(theirs.fileno(), lifeline),
                env=_environment(),
                start_new_session=True,  # a Ctrl-C at the terminal is the parent's to handle
            )
        finally:
            theirs.close()
            os.close(lifeline)
        try:
            self.receive(_START_TIMEOUT_S)
        except (TimeoutError, wire.Closed) as error:
            status, stderr = self.collect()
            raise RuntimeFault(
                f"the decoding child did not start ({_how_it_died(status)}): {stderr}"
            ) from error

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: dict[str, Any], spare: int | None) -> None:
        """Send a request, and with it memory to decode into, which is the child's from now on."""
        self._channel.settimeout(_START_TIMEOUT_S)
        try:
            wire.send(self._channel, message, spare)
        finally:
            if spare is not None:
                os.close(spare)

    def receive(self, timeout_s: float) -> tuple[dict[str, Any], int | None]:
        return wire.receive(self._channel, time.monotonic() + timeout_s)

    def kill(self) -> None:
        """End the process, if it has not ended. Waits no longer than a moment: a process that
        hangs inside the kernel, on a dead file system, cannot be waited for."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_EXIT_TIMEOUT_S)
        self._release()

    def collect(self) -> tuple[int | None, str]:
        """After it hung up: its exit status, negative for a signal, and the end of its stderr."""
        status: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self._process.wait(_EXIT_TIMEOUT_S)
        printed = os.pread(self._stderr, _STDERR_BYTES, 0).rstrip(b"\0\n")
        self.kill()
        return status, printed[-500:].decode(errors="replace").strip()

    def _release(self) -> None:
        self._channel.close()
        os.close(self._lifeline)
        os.close(self._stderr)


class _Spares:
    """Memory of clips that nobody uses any more, for the next ones.

    The kernel takes longer to find and clear new pages than FFmpeg to scale a small frame. Memory
    is at one place at a time: here, with the child, or under a clip's frames. So it goes with a
    child that is killed, and no clip is written over while someone reads it.
    """

    def __init__(self) -> None:
        self._free: list[tuple[int, int]] = []
        """Descriptors and their bytes."""
        self._is_closed = False

    def take(self) -> int | None:
        """The descriptor of memory to decode into, if there is some; the caller's to close."""
        try:
            return self._free.pop()[0]
        except IndexError:
            return None

    def lend(self, fd: int) -> mmap.mmap:
        """Map the whole of a descriptor; it is spare again when the last reference is gone."""
        try:
            memory = mmap.mmap(fd, 0)
            # No lock anywhere: it may run within any call of this class, in any thread.
            weakref.finalize(memory, self._give_back, fd, len(memory)).atexit = False
        except BaseException:
            os.close(fd)
            raise
        return memory

    def close(self) -> None:
        """Let go of all of it, and of what is lent when it comes back."""
        self._is_closed = True
        while (fd := self.take()) is not None:
            os.close(fd)

    def _give_back(self, fd: int, size: int) -> None:
        total = size + sum(spare for _, spare in self._free)
        if self._is_closed or len(self._free) == _MAX_SPARES or total > _MAX_SPARE_BYTES:
            os.close(fd)
        else:
            self._free.append((fd, size))


def _backends_of(config: DecodeConfig, *, in_pieces: bool) -> tuple[str, ...]:
    if config.backend != "auto":
        module = {"pyav": "av"}.get(config.backend, config.backend)
        if importlib.util.find_spec(module) is None:
            raise ConfigError(
                f"decode.backend: {config.backend} is not installed here; install the package "
                f"{module} on every node, or use 'auto'"
            )
        return (config.backend,)
    # decord reads a file from its start for every piece, and pays for the long ones only: which of
    # them a clip gets must not depend on how long pieces are. And it has wheels for one platform.
    if in_pieces or not importlib.util.find_spec("decord"):
        return ("pyav",)
    return ("decord", "pyav")


def _environment() -> dict[str, str]:
    """Ours, with the import path as it is now: an actor's may come from elsewhere than PYTHONPATH.

    One thread for linear algebra: none is done, and idle pools cost address space.
    """
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }


def _video(described: dict[str, Any], backend: str, memory: mmap.mmap) -> Video:
    shape = tuple(described["shape"])
    return Video(
        frames=np.frombuffer(memory, np.uint8, int(np.prod(shape))).reshape(shape),
        pts_s=np.array(described["pts_s"], np.float64),
        fps=described["fps"],
        num_segments=described["num_segments"],
        backend=backend,
        damage=described["damage"],
    )


def _how_it_died(status: int | None) -> str:
    if status is None:
        return "it does not end"
    if status < 0:
        return signal.Signals(-status).name
    return f"exit status {status}"
