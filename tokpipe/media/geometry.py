"""How a frame of any shape becomes one of the job's sizes. Pure arithmetic."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray

FitMode = Literal["crop", "pad", "stretch"]

# A picture that would be resized to more than this many times the pixels kept is cropped first:
# a 1x4000 strip covering 128x128 would otherwise take 196 MB.
_MAX_OVERHANG = 8


@dataclass(frozen=True, slots=True)
class Orientation:
    """How stored rows and columns become the picture: transpose first, then flip."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def apply(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, 3) as stored -> (H, W, 3) or (W, H, 3) as shown; a view."""
        if self.transpose:
            picture = picture.transpose(1, 0, 2)
        rows, columns = (-1 if self.flip_rows else 1), (-1 if self.flip_columns else 1)
        return picture[::rows, ::columns]

    def oriented(self, height: int, width: int) -> tuple[int, int]:
        """Stored (height, width) -> shown, and the other way round."""
        return (width, height) if self.transpose else (height, width)

    def shown(self, height: int, width: int, aspect: Fraction) -> tuple[int, int, Fraction]:
        """Stored (height, width), and the width of a pixel over its height -> shown."""
        return *self.oriented(height, width), 1 / aspect if self.transpose else aspect


def orientation_of(matrix: Sequence[int]) -> Orientation:
    """Read a display matrix: nine numbers, row by row, as containers store them.

    It maps stored (x, y), y pointing down, to (a x + c y, b x + d y). Rounds to quarter turns.
    """
    a, b, _, c, d = matrix[:5]
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(transpose=True, flip_rows=b < 0, flip_columns=c < 0)
    return Orientation(flip_rows=d < 0, flip_columns=a < 0)


@dataclass(frozen=True, slots=True)
class Crop:
    """Columns and rows of a stored frame that are not shown."""

    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0

    def kept(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) as stored -> without what is hidden."""
        return height - self.top - self.bottom, width - self.left - self.right

    def within(self, height: int, width: int) -> "Crop":
        """This crop, or none if it would leave nothing of a stored (height, width)."""
        return self if min(self.kept(height, width)) > 0 else Crop()


@dataclass(frozen=True, slots=True)
class Fit:
    """How an upright picture becomes an output frame: crop a box, resize it, place it."""

    box: tuple[int, int, int, int] | None
    """(top, left, height, width) to crop before resizing; None keeps the whole picture."""
    resized: tuple[int, int]  # (height, width) to resize to
    offset: tuple[int, int]
    """(row, column) of the resized picture where the output starts; negative leaves a margin."""
    size: tuple[int, int]  # (height, width) of the output

    def place(
        self, resized: NDArray[np.uint8], background: Sequence[int], out: NDArray[np.uint8]
    ) -> None:
        """Write a resized picture, whole or cropped already, into ``out`` (H, W, 3), with margins
        of the background."""
        row, column = (0, 0) if resized.shape[:2] == self.size else self.offset
        height, width = self.size
        if min(self.offset) < 0:
            out[:] = background
        part = resized[max(row, 0) : row + height, max(column, 0) : column + width]
        top, left = max(-row, 0), max(-column, 0)
        out[top : top + part.shape[0], left : left + part.shape[1]] = part

    def edges(self, height: int, width: int) -> list[NDArray[np.float64]]:
        """Where in a (height, width) picture each row and column of the output begins, and the
        last ends: (H + 1,) and (W + 1,). Margins are empty."""
        box = self.box or (0, 0, height, width)
        axes = zip(box[:2], box[2:], self.resized, self.offset, self.size, strict=True)
        return [
            first + np.clip(np.arange(size + 1) + offset, 0, resized) * length / resized
            for first, length, resized, offset, size in axes
        ]


def nearest_size(
    sizes: Sequence[tuple[int, int]], height: int, width: int, pixel_aspect: Fraction
) -> tuple[int, int]:
    """Return the (height, width) of ``sizes`` nearest in aspect ratio; of equals, the first."""
    aspect = math.log(width * pixel_aspect / height)
    return min(sizes, key=lambda size: abs(math.log(size[1] / size[0]) - aspect))


@functools.lru_cache  # called for every frame, and as slow as decoding a small one
def fit_frame(
    height: int, width: int, pixel_aspect: Fraction, size: tuple[int, int], mode: FitMode
) -> Fit:
    """Fit an upright picture of (height, width) pixels into ``size``, as ``frames.fit`` says."""
    out_height, out_width = size
    if mode == "stretch":
        return Fit(None, size, (0, 0), size)
    shown_width = width * pixel_aspect
    by_height, by_width = Fraction(out_height, height), out_width / shown_width
    bound = min if mode == "pad" else max
    scale = bound(by_height, by_width)
    resized = (
        bound(out_height, max(1, round(height * scale))),
        bound(out_width, max(1, round(shown_width * scale))),
    )
    if resized[0] * resized[1] > _MAX_OVERHANG * out_height * out_width:
        box_height = min(height, max(1, round(out_height / scale)))
        box_width = min(width, max(1, round(out_width / scale / pixel_aspect)))
        box = ((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)
        return Fit(box, size, (0, 0), size)
    offset = (resized[0] - out_height) // 2, (resized[1] - out_width) // 2
    return Fit(None, resized, offset, size)
