import random
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.media import boxes, combinations
from tests.media.charts import samples, write_planes
from tokpipe.media.geometry import FitMode, Orientation, fit_frame, nearest_size, orientation_of
from tokpipe.media.timeline import read_timeline

CASES = Path(__file__).parents[1] / "cases" / "media"
Picture = NDArray[np.uint8]

BLACK = (0, 0, 0)
ONE = Fraction(1)
SAR = Fraction(40, 33)
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
        fit.place(np.full((*fit.resized, 3), 7, np.uint8), BLACK, out)
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
    fit.place(np.full((72, 128, 3), 9, np.uint8), BLACK, out)
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
    is_upright = np.array_equal(turn(picture), picture)
    assert (orientation == Orientation()) == is_upright


def check_combinations(seeds: range, folder: Path) -> None:
    """Odd 4:2:0 is less exact: FFmpeg stretches its colours over one row or column too many."""
    for seed in seeds:
        one = combinations.draw(random.Random(seed))
        is_odd = "420" in one.pix_fmt and (one.coded[0] % 2 or one.coded[1] % 2)
        largest, mean = combinations.errors(one, folder)
        assert largest <= (7 if is_odd else 4.5), (seed, one)
        assert mean <= (3.5 if is_odd else 2.3), (seed, one)


def test_random_combinations_show_what_geometry_says(tmp_path: Path) -> None:
    check_combinations(range(40), tmp_path)


@pytest.mark.slow
def test_a_thousand_combinations_show_what_geometry_says(tmp_path: Path) -> None:
    check_combinations(range(40, 1040), tmp_path)


def test_what_the_container_hides_is_not_shown() -> None:
    timeline = read_timeline(CASES / "mkvcrop.mkv")
    assert (timeline.height, timeline.width) == (128, 128)
    assert combinations.shown(CASES / "mkvcrop.mkv", (128, 128), "stretch").min() > 15


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize(("height", "width"), [(98, 130), (250, 246), (66, 34)])
def test_what_a_stream_crops_is_not_shown(
    codec: str, height: int, width: int, tmp_path: Path
) -> None:
    """Both codecs store whole blocks, and crop what is beyond the picture."""
    picture = np.full((height, width, 3), 0.5)
    picture[:4], picture[-4:] = 1.0, 0.0
    planes = samples(picture, "yuv420p", 1, False)
    path = write_planes(tmp_path / "a.mp4", planes, "yuv420p", codec=codec)
    shown = combinations.shown(path, (height, width), "stretch").astype(int)
    expected = np.rint(255 * picture)
    assert np.abs(shown - expected).max() <= 2


@pytest.mark.parametrize(("aspect", "in_track"), [(ONE, ONE), (SAR, ONE), (SAR, SAR)])
@pytest.mark.parametrize("has_pasp", [False, True])
def test_a_clean_aperture_in_its_own_size_has_the_pixels_of_the_stream(
    aspect: Fraction, in_track: Fraction, has_pasp: bool, tmp_path: Path
) -> None:
    """As QuickTime writes it, where FFmpeg takes the size of the track for that of the frame."""
    planes = samples(np.full((96, 128, 3), 0.5), "yuv420p", 1, False)
    path = tmp_path / "clap.mp4"
    write_planes(path, planes, "yuv420p", codec="libx264", pixel_aspect=aspect)
    if not has_pasp:
        path.write_bytes(path.read_bytes().replace(b"pasp", b"free"))
    boxes.crop_mp4(path, (4, 12, 8, 16), (96, 128))
    data = bytearray(path.read_bytes())
    size = data.index(b"tkhd") + 80
    shown = round(112 * in_track) << 16, 72 << 16
    data[size : size + 8] = b"".join(number.to_bytes(4, "big") for number in shown)
    path.write_bytes(data)
    timeline = read_timeline(path)
    assert (timeline.height, timeline.width, timeline.pixel_aspect) == (72, 112, aspect)


@pytest.mark.parametrize("codec", ["h264", "hevc"])
@pytest.mark.parametrize(("quarters", "mirrored"), [(1, False), (2, False), (0, True), (3, True)])
def test_rotation_in_the_stream_turns_the_picture(
    codec: str, quarters: int, mirrored: bool, tmp_path: Path
) -> None:
    """A display orientation message: mirrored first, then turned anticlockwise."""
    patches = np.random.default_rng(1).random((3, 4, 3))
    colours = patches.repeat(32, axis=0).repeat(32, axis=1)
    path, encoder = tmp_path / f"clip.{codec}", {"h264": "libx264", "hevc": "libx265"}[codec]
    write_planes(path, samples(colours, "yuv420p", 5, False), "yuv420p", codec=encoder)
    boxes.turn(path, quarters, mirrored)
    turned = np.rot90(colours[:, ::-1] if mirrored else colours, quarters)
    found = combinations.shown(path, (turned.shape[0], turned.shape[1]), "stretch")
    assert np.abs(found[16::32, 16::32] - 255 * turned[16::32, 16::32]).max() < 4
