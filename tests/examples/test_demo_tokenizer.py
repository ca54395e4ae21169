import numpy as np
import pytest
import torch

from examples.demo_tokenizer.bitmap_font import CELL_HEIGHT, CELL_WIDTH, CHARACTERS, draw_text
from examples.demo_tokenizer.scenes import _spectral_noise, make_palette, render_scene

PALETTE = make_palette(seed=0, num_textures=8, num_masks=8)


def scene(seed: int, frames: int = 5, height: int = 24, width: int = 40) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return render_scene(PALETTE, rng, frames=frames, height=height, width=width)


def test_a_scene_is_a_function_of_its_seed() -> None:
    assert np.array_equal(scene(3), scene(3))
    assert not np.array_equal(scene(3), scene(4))


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_scenes_are_frames_of_the_size_asked_for(frames: int) -> None:
    for seed in range(12):
        video = scene(seed, frames)
        assert video.dtype == np.uint8
        assert video.shape == (frames, 24, 40, 3)


def test_scenes_move_and_differ_in_light_and_colour() -> None:
    videos = np.stack([scene(seed) for seed in range(40)]).astype(float)
    assert (np.abs(videos[:, 1:] - videos[:, :-1]).mean((1, 2, 3, 4)) > 0.5).mean() > 0.5
    assert videos.mean((1, 2, 3, 4)).std() > 20
    assert videos.std((2, 3)).mean() > 8


def test_a_larger_palette_begins_with_the_smaller_one() -> None:
    larger = make_palette(seed=0, num_textures=9, num_masks=9)
    assert torch.equal(larger.textures[:8], PALETTE.textures)
    assert torch.equal(larger.masks[:8], PALETTE.masks)
    assert not torch.equal(make_palette(1, 1, 1).textures[0], PALETTE.textures[0])


def test_palettes_stay_in_range_and_shapes_end_before_the_border() -> None:
    for image in (PALETTE.textures, PALETTE.masks):
        assert image.dtype == torch.float32
        assert image.min() >= 0
        assert image.max() <= 1
    border = torch.ones_like(PALETTE.masks, dtype=torch.bool)
    border[:, :, 2:-2, 2:-2] = False
    assert (PALETTE.masks[border] == 0).all()
    assert (PALETTE.masks.amax((1, 2, 3)) == 1).all()


@pytest.mark.parametrize("slope", [0.8, 1.0, 2.0])
def test_noise_has_the_spectrum_asked_for(slope: float) -> None:
    size = 256
    spectra = [
        np.abs(np.fft.rfft2(_spectral_noise(np.random.default_rng(i), size, slope, 1.0)))
        for i in range(8)
    ]
    radius = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    inside = (radius > 0.02) & (radius < 0.4)
    amplitude = np.sqrt(np.mean(np.square(spectra), axis=0))[inside]
    fitted, _ = np.polyfit(np.log(radius[inside]), np.log(amplitude), 1)
    assert fitted == pytest.approx(-slope, abs=0.05)


def test_every_character_has_a_picture_of_its_own() -> None:
    pictures = {draw_text([character]).tobytes() for character in CHARACTERS}
    assert len(pictures) == len(CHARACTERS)


def test_text_is_drawn_cell_by_cell() -> None:
    page = draw_text(["A", "bC"])
    assert page.shape == (2 * CELL_HEIGHT, 2 * CELL_WIDTH)
    assert np.array_equal(page[:CELL_HEIGHT, :CELL_WIDTH], draw_text(["A"]))
    assert np.array_equal(page[CELL_HEIGHT:, CELL_WIDTH:], draw_text(["C"]))
    assert not page[:CELL_HEIGHT, CELL_WIDTH:].any()
    rows = ["".join(".#"[int(dot)] for dot in row[:5]) for row in draw_text(["T"])[1:8]]
    assert rows == ["#####", *["..#.."] * 6]
