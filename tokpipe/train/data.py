"""The batches of a training run: each a pure function of the seed and the step."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokpipe.train.config import TrainConfig
from tokpipe.train.film import Film, read_film
from tokpipe.train.scenes import Palette, make_palette, render_scene


class Ahead:
    """Batches of the coming steps, made by threads while the step at hand runs.

    Gives the same batches as ``data.batch``. Without threads each is made when it is asked for.
    """

    def __init__(self, data: TrainingData, threads: int) -> None:
        self._data = data
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads) if threads else None
        self._coming: dict[int, Future[Tensor]] = {}

    def batch(self, step: int) -> Tensor:
        """See ``TrainingData.batch``. Steps should be asked for in order."""
        if self._pool is None:
            return self._data.batch(step)
        end = min(step + 2 * self._threads, self._data.config.num_steps)
        for coming in range(step, end):
            if coming not in self._coming:
                self._coming[coming] = self._pool.submit(self._data.batch, coming)
        return self._coming.pop(step).result()

    def close(self) -> None:
        """End the threads; batches that nobody asked for are dropped."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


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

    def _clip(self, rng: np.random.Generator, frames: int, size: int) -> NDArray[np.uint8]:
        source = int(rng.choice(len(self.shares), p=self.shares))
        if source < len(self.films):
            return self.films[source].crop(rng, frames=frames, height=size, width=size)
        assert self.palette is not None
        return render_scene(self.palette, rng, frames=frames, height=size, width=size)
