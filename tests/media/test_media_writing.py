"""Videos and pictures for people show the frames that were written."""

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tokpipe.media.writing import frame_grid, write_png, write_video


def gradients(num_frames: int, height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """Smooth moving colour ramps, which 4:2:0 keeps well."""
    t, y, x = np.mgrid[:num_frames, :height, :width]
    return np.stack([60 + x + t, 40 + 3 * y, 200 - x - y // 2], axis=-1).astype(np.uint8)


def greys(num_frames: int) -> NDArray[np.uint8]:
    """Frames of one pixel, whose value is their number."""
    return np.arange(num_frames, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)


def read(path: Path) -> tuple[NDArray[np.uint8], float]:
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        rate = container.streams.video[0].average_rate
        assert rate is not None
        return np.stack(frames), float(rate)


@pytest.mark.parametrize("fps", [8.0, 24000 / 1001, 0.5])
def test_a_video_plays_back_in_its_colours_and_at_its_rate(tmp_path: Path, fps: float) -> None:
    frames = gradients(9)
    write_video(tmp_path / "clip.mp4", fps, [frames[:4], frames[4:]])
    found, rate = read(tmp_path / "clip.mp4")
    assert found.shape == frames.shape
    assert rate == pytest.approx(fps, rel=1e-4)
    assert np.abs(found.astype(int) - frames).mean() < 2


@pytest.mark.parametrize("size", [(48, 64), (9, 15), (1, 1)])
def test_frames_of_any_size_are_written(tmp_path: Path, size: tuple[int, int]) -> None:
    write_video(tmp_path / "clip.mp4", 8.0, [gradients(3, *size)])
    assert read(tmp_path / "clip.mp4")[0].shape == (3, *size, 3)


def interrupted() -> Iterator[NDArray[np.uint8]]:
    yield gradients(3)
    raise RuntimeError("in the middle")


def test_an_interrupted_video_leaves_the_earlier_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"earlier")
    with pytest.raises(RuntimeError, match="in the middle"):
        write_video(path, 8.0, interrupted())
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_a_picture_is_lossless(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (31, 17, 3), dtype=np.uint8)
    write_png(tmp_path / "noise.png", noise)
    np.testing.assert_array_equal(read(tmp_path / "noise.png")[0][0], noise)
    assert list(tmp_path.iterdir()) == [tmp_path / "noise.png"]


@pytest.mark.parametrize("blocks", [[20], [1] * 20, [7, 13]])
def test_a_grid_shows_evenly_spaced_frames_for_blocks_of_any_size(blocks: list[int]) -> None:
    grid = frame_grid(np.split(greys(20), np.cumsum(blocks)[:-1]), 20, num_frames=5, columns=3)
    assert grid[..., 0].tolist() == [[0, 5, 10], [14, 19, 0]]
    for total in (1, 2, 3):  # a short clip, of which every frame is shown
        grid = frame_grid([greys(total)], total, num_frames=8, columns=4)
        assert grid[..., 0].tolist() == [list(range(total))]
