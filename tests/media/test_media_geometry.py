from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokpipe.media.geometry import FitMode, Orientation, fit_frame, nearest_size, orientation_of

Picture = NDArray[np.uint8]

ONE = Fraction(1)
sides = st.one_of(st.integers(1, 64), st.integers(1, 20_000))
aspects = st.sampled_from([ONE, Fraction(2), Fraction(1, 2), Fraction(16, 11), Fraction(12, 11)])


@given(
    shape=st.tuples(sides, sides, aspects),
    size=st.tuples(st.integers(1, 512), st.integers(1, 512)),
    mode=st.sampled_from(["crop", "pad", "stretch"]),
)
def test_every_shape_fits(
    shape: tuple[int, int, Fraction], size: tuple[int, int], mode: FitMode
) -> None:
    fit = fit_frame(*shape, size, mode)
    assert min(fit.resized) >= 1
    # Bounded by the output, so that no picture asks for more memory than a few frames.
    assert fit.resized[0] * fit.resized[1] <= 8 * size[0] * size[1]
    if mode == "pad":
        assert all(r <= s for r, s in zip(fit.resized, size, strict=True))
    else:
        assert all(r >= s for r, s in zip(fit.resized, size, strict=True))
        assert all(0 <= o <= r - s for o, r, s in zip(fit.offset, fit.resized, size, strict=True))
    if fit.box is not None:
        top, left, box_height, box_width = fit.box
        assert 0 <= top <= top + box_height <= shape[0]
        assert 0 <= left <= left + box_width <= shape[1]
    out = np.zeros((*size, 3), np.uint8)
    if fit.resized[0] * fit.resized[1] <= 100_000:
        fit.place(np.full((*fit.resized, 3), 7, np.uint8), out)
        assert (out == 7).sum() == 3 * np.prod(np.minimum(fit.resized, size))


def test_crop_covers_the_size_and_keeps_the_middle() -> None:
    fit = fit_frame(720, 1280, ONE, (128, 128), "crop")
    assert (fit.resized, fit.offset, fit.box) == ((128, 228), (0, 50), None)
    strip = fit_frame(4000, 1, ONE, (128, 128), "crop")  # cropped before it is resized
    assert (strip.resized, strip.box) == ((128, 128), (1999, 0, 1, 1))


def test_pad_fits_inside_with_equal_margins() -> None:
    fit = fit_frame(720, 1280, ONE, (128, 128), "pad")
    assert (fit.resized, fit.offset) == ((72, 128), (-28, 0))
    out = np.zeros((128, 128, 3), np.uint8)
    fit.place(np.full((72, 128, 3), 9, np.uint8), out)
    assert out[28:100].min() == 9
    assert out[:28].max() == out[100:].max() == 0


def test_non_square_pixels_are_taken_into_account() -> None:
    assert fit_frame(100, 100, Fraction(2), (50, 100), "pad").resized == (50, 100)
    assert nearest_size([(64, 64), (64, 128)], 100, 100, Fraction(2)) == (64, 128)


def test_the_first_bucket_with_the_nearest_aspect_ratio_is_chosen() -> None:
    wide, square, tall = buckets = (144, 256), (192, 192), (256, 144)
    for shape, bucket in {
        (720, 1280): wide,
        (1280, 720): tall,
        (500, 500): square,
        (600, 800): square,  # 4:3 is nearer to 1:1 than to 16:9, in ratios
        (1, 4000): wide,
    }.items():
        assert nearest_size([*buckets, (72, 128)], *shape, ONE) == bucket


# What FFmpeg's av_display_rotation_set(theta) and a flip write, in 16.16 fixed point.
UNIT = 1 << 16
MATRICES: dict[str, tuple[tuple[int, int, int, int], Callable[[Picture], Picture]]] = {
    "upright": ((UNIT, 0, 0, UNIT), lambda p: p),
    "quarter clockwise": ((0, UNIT, -UNIT, 0), lambda p: np.rot90(p, -1)),
    "half": ((-UNIT, 0, 0, -UNIT), lambda p: np.rot90(p, 2)),
    "quarter counter-clockwise": ((0, -UNIT, UNIT, 0), lambda p: np.rot90(p, 1)),
    "mirrored": ((-UNIT, 0, 0, UNIT), lambda p: p[:, ::-1]),
    "upside down": ((UNIT, 0, 0, -UNIT), lambda p: p[::-1]),
    "transposed": ((0, UNIT, UNIT, 0), lambda p: p.transpose(1, 0, 2)),
    "a few degrees off upright": ((65_000, 3000, -3000, 65_000), lambda p: p),
}


@pytest.mark.parametrize("name", MATRICES)
def test_a_display_matrix_turns_the_picture(name: str) -> None:
    (a, b, c, d), turn = MATRICES[name]
    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    orientation = orientation_of([a, b, 0, c, d, 0, 0, 0, 1 << 30])
    assert np.array_equal(orientation.apply(picture), turn(picture))
    assert orientation.apply(picture).shape[:2] == orientation.oriented(2, 3)
    assert orientation.is_upright == (orientation == Orientation())
