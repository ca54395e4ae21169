"""How close reconstructed frames are to their source: PSNR and SSIM."""

import math

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]  # (T, H, W, 3) RGB

_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


class Quality:
    """Means over many frames, of any sizes, which are not kept. Higher is better."""

    def __init__(self) -> None:
        self._psnr_sum = self._ssim_sum = 0.0
        self.num_frames = 0

    def add(self, source: Frames, reconstruction: Frames) -> None:
        """Compare frame by frame."""
        self._psnr_sum += float(psnr_db(source, reconstruction).sum())
        self._ssim_sum += float(structural_similarity(source, reconstruction).sum())
        self.num_frames += len(source)

    @property
    def psnr_db(self) -> float:
        """Infinite if any frame is identical."""
        return self._psnr_sum / self.num_frames

    @property
    def ssim(self) -> float:
        """At most 1, for identical frames."""
        return self._ssim_sum / self.num_frames


def psnr_db(source: Frames, reconstruction: Frames) -> NDArray[np.float64]:
    """Return the peak signal-to-noise ratio over the three colours of each frame, in dB; infinite
    for identical frames. Two (T, H, W, 3) uint8 arrays -> (T,)."""
    errors = np.square(source.astype(np.float64) - reconstruction).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        psnr: NDArray[np.float64] = 20 * math.log10(255) - 10 * np.log10(errors)
    return psnr


def structural_similarity(source: Frames, reconstruction: Frames) -> NDArray[np.float64]:
    """Return the mean structural similarity of each frame, over positions and colours.

    Two (T, H, W, 3) uint8 arrays -> (T,). The windows have 11x11 pixels, weighted by a Gaussian
    with a sigma of 1.5, and stay inside the frame; smaller frames use the largest odd window
    that fits. Source: Wang et al., Image Quality Assessment, IEEE TIP 13(4), 2004.
    """
    return np.array([_ssim(x, y) for x, y in zip(source, reconstruction, strict=True)])


def _ssim(source: NDArray[np.uint8], reconstruction: NDArray[np.uint8]) -> float:
    x, y = source.astype(np.float64), reconstruction.astype(np.float64)
    mean_x, mean_y = _blurred(x), _blurred(y)
    variance_x = _blurred(x * x) - mean_x**2
    variance_y = _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    structure = (2 * covariance + _C2) / (variance_x + variance_y + _C2)
    return float((luminance * structure).mean())


def _blurred(picture: NDArray[np.float64]) -> NDArray[np.float64]:
    """(H, W, 3) -> Gaussian means of all windows that fit, first along rows, then along columns."""
    for axis in (0, 1):
        length = picture.shape[axis]
        window = min(_WINDOW, length - (length + 1) % 2)
        offsets = np.arange(window) - window // 2
        weights = np.exp(-(offsets**2) / (2 * _SIGMA**2))
        weights /= weights.sum()
        views = np.lib.stride_tricks.sliding_window_view(picture, window, axis)
        picture = views @ weights
    return picture
