"""Turns decoded frames into output frames: scaled by FFmpeg, turned upright and placed."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import av.filter
import numpy as np
from numpy.typing import NDArray

from tokpipe.media.geometry import Fit, FitMode, Orientation, fit_frame

# FFmpeg's old default, bilinear over the whole area that an output pixel covers, and what makes
# results independent of the vector instructions of a machine. Where something is scaled, the
# latter costs nothing.
_FLAGS = "bilinear+accurate_rnd+bitexact"
# swscale rejects filters with more taps; a stronger reduction takes several steps.
_MAX_REDUCTION = 128


@dataclass(frozen=True, slots=True)
class Framing:
    """What a clip's frames become. ``size`` is the (height, width) of the chosen bucket."""

    size: tuple[int, int]
    mode: FitMode
    pixel_aspect: Fraction
    """Width over height of a stored pixel, before it is turned upright."""
    orientation: Orientation

    @property
    def leaves_margins(self) -> bool:
        """Whether a frame may cover only a part of ``size``, on black."""
        return self.mode == "pad"

    def fit(self, height: int, width: int) -> Fit:
        """How a frame stored as (height, width) fits once it is upright."""
        shown = self.orientation.oriented(height, width)
        aspect = self.orientation.oriented_aspect(self.pixel_aspect)
        return fit_frame(*shown, aspect, self.size, self.mode)


class Painter:
    """Paints PyAV frames into output frames, reusing the scaler of the last frame if it fits."""

    def __init__(self, framing: Framing) -> None:
        self.framing = framing
        self._scaler: _Scaler | None = None

    def paint(self, frame: Any, out: NDArray[np.uint8]) -> None:
        """Write an ``av.VideoFrame`` into ``out`` (H, W, 3), whose margins are already black."""
        upright = self.framing.orientation
        fit = self.framing.fit(frame.height, frame.width)
        if fit.box is None:
            picture = upright.apply(self._scaled(frame, upright.oriented(*fit.resized)))
        else:
            top, left, height, width = fit.box
            picture = upright.apply(self._scaled(frame, (frame.height, frame.width)))
            cut = np.ascontiguousarray(picture[top : top + height, left : left + width])
            box = av.VideoFrame.from_ndarray(cut, "rgb24")
            picture = _Scaler(box, fit.resized)(box)
        fit.place(picture, out)

    def _scaled(self, frame: Any, size: tuple[int, int]) -> NDArray[np.uint8]:
        if self._scaler is None or self._scaler.kind != _kind(frame, size):
            self._scaler = _Scaler(frame, size)
        return self._scaler(frame)


class _Scaler:
    """An FFmpeg filter graph from frames of one kind to RGB of one size."""

    def __init__(self, frame: Any, size: tuple[int, int]) -> None:
        self.kind = _kind(frame, size)
        self._graph = av.filter.Graph()
        self._graph.threads = 1
        node = self._graph.add_buffer(
            width=frame.width,
            height=frame.height,
            format=frame.format,
            time_base=Fraction(1, 1000),  # irrelevant to scaling
        )
        steps: list[tuple[str, str | None]] = [
            ("scale", f"{width}:{height}:flags={_FLAGS}")
            for height, width in _steps((frame.height, frame.width), size)
        ]
        for name, arguments in [*steps, ("format", "rgb24"), ("buffersink", None)]:
            step = self._graph.add(name, arguments)
            node.link_to(step)
            node = step
        self._graph.configure()

    def __call__(self, frame: Any) -> NDArray[np.uint8]:
        """An ``av.VideoFrame`` -> (H, W, 3) RGB, a view of memory that FFmpeg holds for it."""
        self._graph.push(frame)
        scaled: Any = self._graph.pull()
        plane = scaled.planes[0]
        # ``to_ndarray`` would make another copy.
        picture: NDArray[np.uint8] = np.ndarray(
            (scaled.height, scaled.width, 3), np.uint8, plane, strides=(plane.line_size, 3, 1)
        )
        return picture


def _kind(frame: Any, size: tuple[int, int]) -> tuple[Any, ...]:
    """What a scaler depends on."""
    colours = frame.format.name, frame.colorspace, frame.color_range
    return frame.width, frame.height, *colours, size


def _steps(source: tuple[int, int], target: tuple[int, int]) -> list[tuple[int, int]]:
    """Sizes to scale through, the target last."""
    (height, width), steps = target, [target]
    while source[0] > _MAX_REDUCTION * height or source[1] > _MAX_REDUCTION * width:
        height = min(source[0], _MAX_REDUCTION * height)
        width = min(source[1], _MAX_REDUCTION * width)
        steps.insert(0, (height, width))
    return steps
