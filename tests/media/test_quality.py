"""PSNR and SSIM, compared with FFmpeg and with the formulas written out."""

import itertools
import math
from fractions import Fraction
from pathlib import Path

import av
import av.filter
import numpy as np
import pytest
from numpy.typing import NDArray

from tokpipe.media.quality import Quality, psnr_db, structural_similarity

SAMPLE = Path(__file__).parents[2] / "examples/data/bigbuckbunny.mp4"


@pytest.fixture(scope="module")
def sample() -> NDArray[np.uint8]:
    """A part of the first three frames of the sample video."""
    with av.open(str(SAMPLE)) as container:
        first = itertools.islice(container.decode(video=0), 3)
        frames = [frame.to_ndarray(format="rgb24") for frame in first]
    return np.ascontiguousarray(np.stack(frames)[:, 100:228, 300:492])


def noisy(frames: NDArray[np.uint8], sigma: float) -> NDArray[np.uint8]:
    noise = np.random.default_rng(0).normal(0, sigma, frames.shape)
    return np.clip(frames + noise, 0, 255).astype(np.uint8)


def ffmpeg(name: str, x: NDArray[np.uint8], y: NDArray[np.uint8], key: str) -> float:
    """The value that FFmpeg's filter computes for one pair of frames, as planar RGB."""
    graph = av.filter.Graph()
    height, width = x.shape[:2]
    planar = av.VideoFormat("gbrp")
    ends = [
        graph.add_buffer(width=width, height=height, format=planar, time_base=Fraction(1, 8))
        for _ in range(2)
    ]
    compare, sink = graph.add(name), graph.add("buffersink")
    for index, end in enumerate(ends):
        end.link_to(compare, 0, index)
    compare.link_to(sink)
    graph.configure()
    for end, picture in zip(ends, (y, x), strict=True):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="gbrp")
        frame.pts = 0
        end.push(frame)
        end.push(None)
    return float(sink.pull().metadata[key])


@pytest.mark.parametrize("sigma", [1.0, 10.0, 60.0])
def test_quality_is_that_of_ffmpeg(sample: NDArray[np.uint8], sigma: float) -> None:
    damaged = noisy(sample, sigma)
    pairs = list(zip(sample, damaged, strict=True))
    wanted = [ffmpeg("psnr", x, y, "lavfi.psnr.psnr_avg") for x, y in pairs]
    np.testing.assert_allclose(psnr_db(sample, damaged), wanted, atol=0.01)
    # FFmpeg computes SSIM in flat windows of 8x8, so the values differ a little.
    wanted = [ffmpeg("ssim", x, y, "lavfi.ssim.All") for x, y in pairs]
    np.testing.assert_allclose(structural_similarity(sample, damaged), wanted, atol=0.06)


def test_ssim_of_one_window_equals_the_formula(sample: NDArray[np.uint8]) -> None:
    x, y = sample[:1, :11, :11], noisy(sample, 20.0)[:1, :11, :11]
    offsets = np.arange(11) - 5
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    similarities = []
    for colour in range(3):
        a, b = x[0, ..., colour].astype(float), y[0, ..., colour].astype(float)
        mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
        variance_a = (weights * (a - mean_a) ** 2).sum()
        variance_b = (weights * (b - mean_b) ** 2).sum()
        covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
        c1, c2 = 2.55**2, 7.65**2
        similarities.append(
            (2 * mean_a * mean_b + c1)
            * (2 * covariance + c2)
            / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))
        )
    assert structural_similarity(x, y)[0] == pytest.approx(np.mean(similarities), rel=1e-9)


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (10, 64), (11, 11), (128, 192)])
def test_identical_frames_of_any_size_have_the_best_quality(size: tuple[int, int]) -> None:
    x = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    assert psnr_db(x, x).tolist() == [math.inf] * 2
    assert structural_similarity(x, x) == pytest.approx([1.0, 1.0])
    assert (structural_similarity(x, 255 - x) < 1).all()


def test_quality_is_the_mean_over_all_its_frames(sample: NDArray[np.uint8]) -> None:
    damaged = noisy(sample, 5.0)
    quality = Quality()
    quality.add(sample[:1], damaged[:1])
    quality.add(sample[1:], damaged[1:])
    assert quality.psnr_db == pytest.approx(psnr_db(sample, damaged).mean())
    assert quality.ssim == pytest.approx(structural_similarity(sample, damaged).mean())
    assert quality.num_frames == 3
