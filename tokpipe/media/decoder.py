"""Decodes clips in a child process that can be killed: hostile files do hang and crash decoders."""

import logging
import math
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokpipe.config.job import DecodeConfig, FramesConfig, SamplingConfig
from tokpipe.errors import RuntimeFault, SourceError
from tokpipe.media import wire
from tokpipe.media.child_process import ChildProcess, how_it_died
from tokpipe.storage.fetch import LocalVideo
from tokpipe.types import VIDEO, Cut, Media

_log = logging.getLogger(__name__)
_File = Path | LocalVideo

_MAX_OUTSIDE_KILLS = 3
"""How often in a row a clip's child may be killed from outside (out of memory, an operator)."""


@dataclass(frozen=True, slots=True)
class Video:
    """The frames of one clip, and what is known about its source."""

    frames: NDArray[np.uint8]  # (T, H, W, 3) RGB
    pts_s: NDArray[np.float64]  # (T,) true presentation times, on the clock of the container
    fps: float  # Frames per second: the job's, or the average of the source
    num_segments: int  # Number of segments of the row: clips, or pieces of its one clip
    backend: str
    damage: str | None = None  # What is missing, under ``decode.on_damage: mark``
    marks: Sequence[str] = ()  # What is special about the source


@dataclass(frozen=True, slots=True)
class Probe:
    """What decoding a span of a video will return, according to its container."""

    num_frames: int  # Frames of all segments together
    num_segments: int
    size: tuple[int, int]  # (height, width) of the frames
    shown: tuple[int, int, Fraction]  # Height, width and pixel aspect of the upright picture
    times_s: NDArray[np.float64]  # (T + 1,) of the frames of segment 0, and when the last ends
    source_fps: float
    is_picture: bool = False


class VideoDecoder:
    """Decodes with one child process, which is started again whenever it had to be killed.

    The same file and span always return the same frames. Any thread may call it, one at a time.

    A segment is a clip of ``sampling.max_clip_frames`` or, with ``pieces``, a piece of the row's
    one clip. ``versions`` must load, as ``job.json`` lists them; None accepts any. ``backends``,
    named as for ``load_backend``, are tried in order in place of ``decode.backend``.
    """

    def __init__(
        self,
        decode: DecodeConfig,
        sampling: SamplingConfig,
        frames: FramesConfig,
        *,
        pieces: Cut | None = None,
        versions: Mapping[str, str] | None = None,
        backends: Sequence[str] | None = None,
    ) -> None:
        self._config = decode
        self._versions = versions
        self._backends = decode.backends if backends is None else tuple(backends)
        self._has_pictures = "pillow" in (versions or ())
        cut = pieces or Cut(sampling.max_clip_frames, sampling.max_clip_frames)
        self._settings = {
            **sampling.model_dump(include={"fps", "min_clip_frames"}),
            **frames.model_dump(include={"hdr", "matrix", "deinterlace", "fit"}),
            "cut": (cut.first, cut.later),
            "segment_is": "piece" if pieces else "clip",
            "segment": 0,
            "num_segments": None,
            "only_probe": False,
            "background": frames.background_rgb,
            "sizes": frames.sizes,
            "salvage": decode.on_damage == "mark",
        }
        self._child: ChildProcess | None = None

    def start(self) -> ChildProcess:
        """Start the child unless it runs; raises what ``ChildProcess`` does."""
        if self._child is None:
            decoders = (*self._backends, *["pillow"] * self._has_pictures)
            self._child = ChildProcess(self._config.memory_bytes, decoders, self._versions)
        return self._child

    def decode(
        self,
        file: _File,
        *,
        start_s: float | None = None,
        end_s: float | None = None,
        segment: int = 0,
        num_segments: int | None = None,
        media: Media = VIDEO,
    ) -> Video:
        """Decode one segment of a span of a local file, or a picture, which has neither.

        Raises SourceError if the clip cannot be decoded, through its own fault, and RuntimeFault
        if the child does not start, or keeps being killed from outside.
        """
        span = {"start_s": start_s, "end_s": end_s, "segment": segment}
        video, fd = self._answer(file, media, **span, num_segments=num_segments)
        shape = tuple(video.pop("shape"))
        with open(fd, "rb") as memory:  # noqa: PTH123 (a descriptor)
            memory.seek(0)  # It is as far as it was read before
            pts_s = np.fromfile(memory, np.float64, shape[0])
            memory.seek(video.pop("offset"))
            frames = np.fromfile(memory, np.uint8, math.prod(shape)).reshape(shape)
        return Video(frames, pts_s, **video)

    def probe(
        self,
        file: _File,
        *,
        start_s: float | None = None,
        end_s: float | None = None,
        media: Media = VIDEO,
    ) -> Probe:
        """Read the container of a local file without decoding it; raises as ``decode`` does."""
        probe, fd = self._answer(file, media, start_s=start_s, end_s=end_s, only_probe=True)
        with open(fd, "rb") as answer:  # noqa: PTH123 (a descriptor)
            answer.seek(0)
            times_s = np.frombuffer(answer.read(), np.float64)
        height, width, aspect = probe.pop("shown")
        shown, size = (height, width, Fraction(aspect)), tuple(probe.pop("size"))
        return Probe(size=size, shown=shown, times_s=times_s, **probe)

    def close(self) -> None:
        """End the child. The next ``decode`` starts another."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _answer(self, file: _File, media: Media, **asked: Any) -> tuple[dict[str, Any], int]:
        """Ask children until one answers; also return the frames' descriptor, or -1 without."""
        if isinstance(file, Path):
            file = LocalVideo(file.absolute())
        path, names = file.path, {"path": os.fspath(file.path), "file_name": file.file_name}
        request = {**self._settings, **asked, **names, "media": media}
        request["is_partial"] = file.parts is not None and 0 in file.parts.has
        if media != VIDEO and not self._has_pictures:
            self.close()  # The next child loads Pillow as well
            self._has_pictures = True
        backends, outside_kills = list(self._backends), 0
        while True:
            try:
                answer = self._attempt({**request, "backend": backends[0]}, file)
            except SourceError as error:
                # Final: what is found before a backend is tried, and the answer of the last one.
                if error.backend not in backends[:-1]:
                    raise
                tried = backends.pop(0)
                if self._child is None:  # it hung or crashed
                    _log.info("%s: %s by %s; trying %s", path, error.reason, tried, backends[0])
                continue
            if answer is not None:
                return answer
            outside_kills += 1
            if outside_kills == _MAX_OUTSIDE_KILLS:
                raise RuntimeFault(
                    f"the decoding child was killed {outside_kills} times from outside while it "
                    f"read {path}. Most often the node ran out of memory: lower "
                    "decode.memory_bytes, or run fewer decoders per node (runtime.decode.cpus)."
                )

    def _attempt(
        self, request: dict[str, Any], file: LocalVideo
    ) -> tuple[dict[str, Any], int] | None:
        """Return a child's answer; None if it was killed from outside, or before it saw the clip.
        Meanwhile, fetch what it needs of ``file``."""
        child = self.start()
        tried: dict[str, Any] | None = None  # The backend, and the number of segments
        deadline_s = self._config.deadline_s
        try:
            wire.send(child.channel, request, file.copy)
            answer, fd = wire.receive(child.channel, left_s := deadline_s)
            while "trying" in answer or "needs" in answer:
                if "trying" in answer:
                    tried, left_s = answer["trying"], deadline_s
                elif file.parts and file.copy is not None:  # fetching takes none of the time
                    filled = file.parts.fill(file.copy, *answer["needs"])
                    wire.send(child.channel, {"has": filled})
                started = time.monotonic()
                answer, fd = wire.receive(child.channel, left_s)
                left_s = max(left_s - (time.monotonic() - started), 1e-3)
        except TimeoutError:
            self.close()
            message = f"decoding took longer than decode.deadline_s = {deadline_s:g} s"
            raise SourceError("timeout", message, error="TimeoutError", **tried or {}) from None
        except ConnectionError:
            status, stderr = child.collect()
            self._child = None
            if status == -signal.SIGKILL or tried is None:
                return None
            died = how_it_died(status)
            message = f"the decoding process died ({died})" + (stderr and f": {stderr}")
            signal_name = died if status is not None and status < 0 else None
            raise SourceError("crashed", message, error=signal_name, **tried) from None
        except BaseException:
            self.close()  # an answer may still be on its way
            raise
        match answer:
            case {"done": found}:
                return found, -1 if fd is None else fd
            case {"rejected": fields}:
                raise SourceError(**fields, **tried or {})
        self.close()
        raise RuntimeError(f"the decoding child failed on {request['path']}:\n{answer['fault']}")
