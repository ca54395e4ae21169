"""Turns decoded frames into output frames: scaled by FFmpeg, turned upright and placed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache, partial
from typing import Any

import av
import av.filter
import numpy as np
from numpy.typing import NDArray

from tokpipe.errors import SourceError
from tokpipe.media.colour import LIMITED, Tags, compose, conversion, tags_of, tonemapped
from tokpipe.media.geometry import Crop, Fit, FitMode, Orientation, fit_frame

# Over the whole area of an output pixel, and independent of a machine's vector instructions.
_FLAGS = "flags=bilinear+accurate_rnd+bitexact"
# By bytes per pixel. Without planes, FFmpeg's scaler from YUV is slower and up to 8 of 255 off.
_PLANES = {3: "gbrp", 4: "gbrap", 6: "gbrp16le", 8: "gbrap16le"}
_PACKED = {3: "rgb24", 4: "rgba", 6: "rgb48le", 8: "rgba64le"}
Size = tuple[int, int]  # (height, width)
# From limited to full range.
_STRETCH = ":".join(f"{c}=clip((val-maxval*16/255)*255/219+0.5\\,0\\,maxval)" for c in "rgb")


@dataclass(frozen=True, slots=True)
class Framing:
    """What a clip's frames become. ``size`` is the (height, width) of the chosen bucket.
    ``matrix``, ``hdr``, ``background`` and ``deinterlace`` are settings of ``frames``."""

    size: tuple[int, int]
    mode: FitMode
    pixel_aspect: Fraction  # Width over height of a stored pixel, before it is turned upright
    orientation: Orientation
    crop: Crop = field(default_factory=Crop)  # What the container hides of a stored frame
    matrix: str = "auto"
    hdr: str = "tonemap"
    background: tuple[int, int, int] = (0, 0, 0)
    deinterlace: bool = False
    has_fields: bool = False  # What the container says of all frames

    def check(self, tags: Tags) -> None:
        """Raise ``SourceError`` for frames that the job rejects."""
        if tags.is_hdr and self.hdr == "reject":
            raise SourceError("hdr", "the video is HDR (PQ or HLG), which frames.hdr rejects")

    def fit(self, height: int, width: int) -> Fit:
        """How a frame stored as (height, width), without what is hidden, fits once upright."""
        shown = self.orientation.shown(height, width, self.pixel_aspect)
        return fit_frame(*shown, self.size, self.mode)


class Painter:
    """Paints PyAV frames into output frames, reusing the last scalers if they fit."""

    def __init__(self, framing: Framing) -> None:
        self.framing = framing
        self._scaler = lru_cache(4)(partial(_scaler, framing))  # sizes may change at every frame

    def paint(self, frame: Any, out: NDArray[np.uint8]) -> Tags:
        """Write a frame into ``out`` (H, W, 3); return what it and the container say of it."""
        upright, tags = self.framing.orientation, tags_of(frame)
        tags = tags._replace(is_interlaced=tags.is_interlaced or self.framing.has_fields)
        self.framing.check(tags)
        crop = self.framing.crop.within(frame.height, frame.width)
        height, width = crop.kept(frame.height, frame.width)
        fit = self.framing.fit(height, width)
        if fit.box is None and not tags.has_alpha:
            size = upright.oriented(*fit.resized)
            picture = upright.apply(self._scaled(frame, tags, crop, size, fit))
        else:
            # Composed before it is scaled, so that hidden colours do not bleed into edges.
            picture = upright.apply(self._scaled(frame, tags, crop, (height, width)))
            top, left, height, width = fit.box or (0, 0, *picture.shape[:2])
            picture = picture[top : top + height, left : left + width]
            if picture.shape[2] == 4:
                picture = compose(picture, self.framing.background)
            whole = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
            picture = self._scaled(whole, tags_of(whole), Crop(), fit.resized)
        fit.place(picture, self.framing.background, out)
        return tags

    def _scaled(self, frame: Any, *how: Any) -> Any:
        return self._scaler((frame.height, frame.width), *how)(frame)


def _scaler(
    framing: Framing, whole: Size, tags: Tags, crop: Crop, size: Size, fit: Fit | None = None
) -> Callable[[Any], NDArray[np.uint8]]:
    """A function from frames of (height, width) ``whole`` to (H, W, 3) RGB, or 4 with alpha; with
    ``fit`` mostly what that keeps. The array is often a view of memory that FFmpeg holds for it."""
    tonemaps = tags.is_hdr and framing.hdr == "tonemap"
    channels, dtype = 3 + tags.has_alpha, np.dtype("u2" if tonemaps else "u1")
    pixel_bytes = channels * dtype.itemsize
    planes = ("format", _PLANES[pixel_bytes])
    to_rgb = f"{_FLAGS}:{conversion(tags, whole[0], framing.matrix)}"
    inner = crop.kept(*whole)
    steps: list[tuple[str, str | None]] = []
    takes_field = tags.is_interlaced and framing.deinterlace
    if takes_field:
        steps.append(("field", "type=top"))
    # Columns or rows may begin in the middle of a chroma sample.
    if crop.left % 4 or crop.top % 4 or (takes_field and inner != whole):
        steps += [_scale(whole, to_rgb), planes]
        to_rgb = _FLAGS
    if inner != whole:
        steps.append(("crop", f"{inner[1]}:{inner[0]}:{crop.left}:{crop.top}:exact=1"))
    steps += [_scale(size, to_rgb), planes]
    if fit is not None and min(fit.offset) >= 0 and framing.orientation == Orientation():
        (top, left), size = fit.offset, fit.size  # before colours are put together, which is slow
        steps.append(("crop", f"{size[1]}:{size[0]}:{left}:{top}:exact=1"))
    if tags.range == LIMITED and (tags.is_grey or tags.is_rgb):  # scaled as if full range
        steps.append(("lutrgb", _STRETCH))
    steps += [("format", _PACKED[pixel_bytes]), ("buffersink", None)]
    graph: Any = av.filter.Graph()
    graph.threads = 1
    ticks = Fraction(1, 1000)  # irrelevant to scaling
    begin = graph.add_buffer(None, whole[1], whole[0], tags.format, time_base=ticks)
    graph.link_nodes(begin, *(graph.add(*step) for step in steps)).configure()

    def scaled(frame: Any) -> NDArray[np.uint8]:
        graph.push(frame)
        plane = graph.pull().planes[0]
        # ``to_ndarray`` would make another copy.
        shape, strides = (*size, channels), (plane.line_size, pixel_bytes, dtype.itemsize)
        picture: NDArray[Any] = np.ndarray(shape, dtype, plane, strides=strides)
        return tonemapped(picture, tags) if tonemaps else picture

    return scaled


def _scale(size: tuple[int, int], options: str) -> tuple[str, str]:
    return "scale", f"{size[1]}:{size[0]}:{options}"
