"""Crops of a film for training: any place, scale, direction and speed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from tokpipe.config.job import DecodeConfig, FramesConfig, SamplingConfig
from tokpipe.errors import ConfigError
from tokpipe.media.decoder import VideoDecoder

_SEGMENT_FRAMES = 32
"""Frames decoded at once: 88 MB at 1280x720."""


def read_film(
    path: Path, height: int, width: int, first: int = 0, last: int | None = None
) -> NDArray[np.uint8]:
    """Frames ``first`` to ``last`` (not included) of a video, (T, height, width, 3) RGB.

    Frames of another shape are scaled to cover that size, and their middle is cut out.

    Raises:
        SourceError: the video cannot be decoded.
        ConfigError: it does not have these frames.
    """
    parts: list[NDArray[np.uint8]] = []
    num_segments: int | None = None
    decoder = VideoDecoder(
        DecodeConfig(),
        SamplingConfig(fps=None, max_clip_frames=_SEGMENT_FRAMES),
        FramesConfig(size=(height, width)),
    )
    with contextlib.closing(decoder):
        while num_segments is None or len(parts) < num_segments:
            video = decoder.decode(path, segment=len(parts), num_segments=num_segments)
            num_segments = video.num_segments
            parts.append(video.frames)
    frames = np.concatenate(parts)
    last = len(frames) if last is None else last
    if not 0 <= first < last <= len(frames):
        raise ConfigError(
            f"{path} has {len(frames)} frames, so frames {first} to {last} of it cannot be used: "
            "give others, or the whole film"
        )
    return frames[first:last]


class Film:
    """Frames of one film at full, half, quarter... size, so that crops of any scale are quick."""

    def __init__(self, frames: NDArray[np.uint8]) -> None:
        self.levels = [frames]
        while min(self.levels[-1].shape[1:3]) >= 128:
            fine = self.levels[-1]
            height, width = fine.shape[1] // 2 * 2, fine.shape[2] // 2 * 2
            blocks = fine[:, :height, :width].reshape(len(fine), height // 2, 2, width // 2, 2, 3)
            self.levels.append(np.stack([(f.mean((1, 3)) + 0.5).astype(np.uint8) for f in blocks]))

    def crop(
        self,
        rng: np.random.Generator,
        *,
        frames: int,
        height: int,
        width: int,
        time_strides: Sequence[int] = (1, 1, 2, 3),
    ) -> NDArray[np.uint8]:
        """(frames, height, width, 3): some place and scale, mirrored or backwards at times."""
        length, tall, wide = self.levels[0].shape[:3]
        stride = int(rng.choice(time_strides))
        stride = max(1, min(stride, (length - 1) // max(1, frames - 1)))
        span = 1 + stride * (frames - 1)
        if span > length:
            raise ValueError(f"a clip of {frames} frames was asked of a film of {length}")
        start = int(rng.integers(length - span + 1))
        largest = min(tall / height, wide / width)
        if largest < 1:
            raise ValueError(f"a crop of {height}x{width} was asked of a film of {tall}x{wide}")
        scale = math.exp(rng.uniform(0, math.log(largest)))
        level = min(int(math.log2(scale)), len(self.levels) - 1)
        source = self.levels[level]
        rows = min(round(height * scale / 2**level), source.shape[1])
        columns = min(round(width * scale / 2**level), source.shape[2])
        top = int(rng.integers(source.shape[1] - rows + 1))
        left = int(rng.integers(source.shape[2] - columns + 1))
        clip = source[start : start + span : stride, top : top + rows, left : left + columns]
        if rng.random() < 0.5:
            clip = clip[:, :, ::-1]
        if rng.random() < 0.5:
            clip = clip[::-1]
        if (rows, columns) == (height, width):
            return np.ascontiguousarray(clip)
        planes = torch.from_numpy(np.ascontiguousarray(clip)).permute(0, 3, 1, 2)
        resized = F.interpolate(planes.float(), (height, width), mode="bilinear", antialias=True)
        shown: NDArray[np.uint8] = (
            resized.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        )
        return shown
