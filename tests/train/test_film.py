from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tokpipe.errors import ConfigError
from tokpipe.train.film import Film, read_film

SAMPLE = Path(__file__).parents[2] / "examples" / "data" / "bigbuckbunny.mp4"


def ramp(frames: int = 12, height: int = 160, width: int = 300) -> np.ndarray:
    """Red is the frame's number, green grows to the right, blue downwards."""
    film = np.zeros((frames, height, width, 3), np.uint8)
    film[..., 0] = 10 * np.arange(frames)[:, None, None]
    film[..., 1] = np.linspace(0, 250, width).round()
    film[..., 2] = np.linspace(0, 250, height).round()[:, None]
    return film


def test_crops_are_places_of_the_film_at_many_scales_speeds_and_directions() -> None:
    film = Film(ramp())
    steps, scales, mirrored = set(), [], set()
    for seed in range(60):
        crop = film.crop(np.random.default_rng(seed), frames=4, height=32, width=32)
        assert crop.shape == (4, 32, 32, 3)
        red = crop[..., 0].astype(int)
        assert (red == red[:, :1, :1]).all()
        steps.add(int(red[1, 0, 0] - red[0, 0, 0]))
        across = crop[0, 16, :, 1].astype(int)
        mirrored.add(across[-1] < across[0])
        scales.append(abs(across[-1] - across[0]))
        down = crop[0, :, 16, 2].astype(int)
        assert (np.diff(down) >= 0).all()
    assert {10, -10, 20, -20, 30, -30} == steps
    assert mirrored == {True, False}
    assert min(scales) < 40
    assert max(scales) > 100


def test_a_crop_is_a_function_of_its_generator() -> None:
    film = Film(ramp())
    first, again, other = (
        film.crop(np.random.default_rng(seed), frames=4, height=32, width=32) for seed in (5, 5, 6)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_clips_as_long_as_the_film_can_be_had() -> None:
    crop = Film(ramp(frames=5)).crop(np.random.default_rng(0), frames=5, height=32, width=32)
    assert sorted(crop[:, 0, 0, 0]) == [0, 10, 20, 30, 40]


@pytest.mark.parametrize(
    ("frames", "size", "complaint"),
    [(13, 32, "13 frames was asked of a film of 12"), (1, 161, "161x161 was asked")],
)
def test_what_the_film_does_not_have_cannot_be_cropped(
    frames: int, size: int, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        Film(ramp()).crop(np.random.default_rng(0), frames=frames, height=size, width=size)


def test_a_film_is_read_from_one_frame_to_another() -> None:
    whole = read_film(SAMPLE, 36, 64)
    assert whole.shape == (132, 36, 64, 3)
    assert np.array_equal(read_film(SAMPLE, 36, 64, 90, 101), whole[90:101])


def test_frames_that_a_film_does_not_have_are_refused() -> None:
    with pytest.raises(ConfigError, match="has 132 frames, so frames 100 to 140"):
        read_film(SAMPLE, 36, 64, 100, 140)
