"""The batches of a training run: each a pure function of the seed and the step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tokpipe.train.config import TrainConfig
from tokpipe.train.film import Film, read_film
from tokpipe.train.scenes import Palette, make_palette, render_scene


class TrainingData:
    """Clips of films and drawn scenes, in their shares. Nothing is kept between batches."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.films = [
            Film(read_film(Path(film.path), *film.size, film.first_frame, film.last_frame))
            for film in config.films
        ]
        self.palette: Palette | None = None
        shares = [film.share for film in config.films]
        if config.scenes is not None:
            scenes = config.scenes
            self.palette = make_palette(config.seed, scenes.textures, scenes.shapes)
            shares.append(scenes.share)
        self.shares = np.array(shares) / sum(shares)

    def batch(self, step: int) -> Tensor:
        """The clips of one step: (B, T, H, W, 3) uint8."""
        phase, _ = self.config.phase_at(step)
        # 0 here and 1 + clip below: the batch and each of its clips have a generator of their own.
        rng = np.random.default_rng((self.config.seed, step, 0))
        batch = phase.batches[int(rng.integers(len(phase.batches)))]
        clips = [
            self._clip(
                np.random.default_rng((self.config.seed, step, 1 + i)), batch.frames, phase.size
            )
            for i in range(batch.clips)
        ]
        return torch.from_numpy(np.stack(clips))

    def _clip(self, rng: np.random.Generator, frames: int, size: int) -> np.ndarray:
        source = int(rng.choice(len(self.shares), p=self.shares))
        if source < len(self.films):
            return self.films[source].crop(rng, frames=frames, height=size, width=size)
        assert self.palette is not None
        return render_scene(self.palette, rng, frames=frames, height=size, width=size)
