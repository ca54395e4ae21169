"""The batches of a training run: random crops of clips that are drawn from its sources."""

import hashlib
import itertools
import logging
import math
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from queue import SimpleQueue

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from torch import Tensor

from examples.train_tokenizer.config import TrainConfig
from tokpipe.errors import ConfigError
from tokpipe.media.quality import Frames
from tokpipe.sources import open_sources
from tokpipe.sources.rows import ROW_SCHEMA, RowSource, items_of
from tokpipe.stages.decode import DecodeStage
from tokpipe.storage.read_ahead import read_ahead
from tokpipe.types import DecodedClip, EncodedClip, Failed, Rejected, WorkItem

_log = logging.getLogger(__name__)

_MAX_ATTEMPTS = 32  # Unusable clips in a row after which a run gives up
_TIME_STRIDES = (1, 1, 2, 3)  # Crops take every, every second or every third frame of their clip
_BATCH, _CLIP = 0, 1
"""Separate the random numbers of batches from those of clips."""


class TrainingData:
    """Crops of the videos in a run's sources.

    Clip k of a run is a random segment of a random row, decided by the seed and k. Step s takes
    its crops from clips ``s * fresh_clips`` to ``s * fresh_clips + buffer_clips``, so its batch
    depends only on the seed and the step. Memory holds one buffer of clips, and the rows.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self._sources = [
            _usable_rows(source) for source in open_sources(config.sources, config.storage)
        ]
        shares = config.shares or [table.num_rows for table in self._sources]
        self._shares = np.array(shares) / sum(shares)

    def digest(self) -> str:
        """Return a hash of all rows. Runs with equal settings and digests get equal batches."""
        digest = hashlib.sha256()
        for table in self._sources:
            for batch in table.drop_columns("source_version").to_batches():
                for row in batch.to_pylist():
                    digest.update(repr(row).encode())
        return digest.hexdigest()

    def batches(self, first_step: int) -> Generator[Tensor]:
        """Yield the batch of each step from ``first_step`` on: (B, T, H, W, 3) uint8."""
        ahead = self.config.data_threads
        numbers = itertools.count(int(first_step * self.config.fresh_clips))
        with (
            closing(_Decoders(self.config)) as decoders,
            closing(read_ahead(partial(self._clip, decoders), numbers, ahead)) as clips,
            closing(
                read_ahead(lambda held: self._batch(*held), self._buffers(first_step, clips), ahead)
            ) as batches,
        ):
            yield from batches

    def _buffers(
        self, first_step: int, clips: Iterator[Frames]
    ) -> Iterator[tuple[int, list[Frames]]]:
        buffer: deque[Frames] = deque(maxlen=self.config.buffer_clips)
        end = int(first_step * self.config.fresh_clips)
        for step in range(first_step, self.config.num_steps):
            needed = int(step * self.config.fresh_clips) + self.config.buffer_clips
            buffer.extend(itertools.islice(clips, needed - end))
            end = needed
            yield step, list(buffer)

    def _batch(self, step: int, clips: Sequence[Frames]) -> Tensor:
        phase, _ = self.config.phase_at(step)
        rng = np.random.default_rng((self.config.seed, _BATCH, step))
        shape = phase.batches[int(rng.integers(len(phase.batches)))]
        crops = [
            random_crop(clips[int(rng.integers(len(clips)))], rng, shape.frames, phase.size)
            for _ in range(shape.clips)
        ]
        return torch.from_numpy(np.stack(crops))

    def _clip(self, decoders: "_Decoders", number: int) -> Frames:
        """Decode clip ``number``. In place of one that cannot be used, another is drawn."""
        for attempt in range(_MAX_ATTEMPTS):
            rng = np.random.default_rng((self.config.seed, _CLIP, number, attempt))
            chosen = int(rng.choice(len(self._shares), p=self._shares))
            rows, source = self._sources[chosen], self.config.sources[chosen]
            row = int(rng.integers(rows.num_rows))
            (item,) = items_of(rows.slice(row, 1), [row], source)
            clip = decoders.decode(replace(item, row_id=f"{row:032x}"), rng)
            if isinstance(clip, DecodedClip):
                return clip.frames
            problem = f"{clip.ref.source_uri}: {clip.message}"
            _log.warning("clip not used: %s", problem)
        raise ConfigError(
            f"{_MAX_ATTEMPTS} clips in a row could not be used; the last: {problem}. Training "
            f"needs clips of at least {self.config.longest_batch} frames, the longest batch: check "
            "sources and sampling"
        )


class _Decoders:
    def __init__(self, config: TrainConfig) -> None:
        self._idle: SimpleQueue[DecodeStage] = SimpleQueue()
        self._number = max(1, config.data_threads)
        self._is_closed = False
        shortest = max(config.sampling.min_clip_frames, config.longest_batch)
        sampling = config.sampling.model_copy(update={"min_clip_frames": shortest})
        for _ in range(self._number):
            stage = DecodeStage(sampling, config.frames, config.decode, config.storage)
            stage.setup()
            self._idle.put(stage)

    def decode(self, item: WorkItem, rng: np.random.Generator) -> DecodedClip | Rejected | Failed:
        """Decode a random segment of an item's row."""
        stage = self._idle.get()
        try:
            if self._is_closed:  # the thread started this clip after the last batch was taken
                raise RuntimeError("the decoders are closed")
            probe = stage.probe(item)
            if isinstance(probe, Rejected | Failed):
                return probe
            segment = int(rng.integers(probe.num_segments))
            part = replace(item, segment=segment, num_segments=probe.num_segments)
            (decoded,) = stage.process([part])
            assert not isinstance(decoded, EncodedClip)  # nothing is reused
            return decoded
        finally:
            self._idle.put(stage)

    def close(self) -> None:
        """Wait for clips that are being decoded, then end the decoding processes."""
        self._is_closed = True
        for stage in [self._idle.get() for _ in range(self._number)]:
            stage.close()
            self._idle.put(stage)


def _usable_rows(source: RowSource) -> pa.Table:
    batches = (batch.select(ROW_SCHEMA.names) for batch in source.batches())
    rows = pa.Table.from_batches(batches, ROW_SCHEMA)
    usable = rows.filter(pc.is_null(rows["problem"]))
    if not usable.num_rows:
        raise ConfigError(f"{source.label}: none of its {rows.num_rows} rows can be used")
    if problems := rows.num_rows - usable.num_rows:
        _log.warning("%s: %d of %d rows cannot be used", source.label, problems, rows.num_rows)
    return usable


def random_crop(clip: Frames, rng: np.random.Generator, frames: int, size: int) -> Frames:
    """Crop (frames, size, size, 3) or more at a random place, scale, speed and direction."""
    length, height, width = clip.shape[:3]
    stride = int(rng.choice(_TIME_STRIDES))
    stride = max(1, min(stride, (length - 1) // max(1, frames - 1)))
    span = 1 + stride * (frames - 1)
    side = round(size * math.exp(rng.uniform(0, math.log(min(height, width) / size))))
    start, top, left = (
        int(rng.integers(room + 1)) for room in (length - span, height - side, width - side)
    )
    crop = clip[start : start + span : stride, top : top + side, left : left + side]
    if rng.random() < 0.5:
        crop = crop[:, :, ::-1]
    if rng.random() < 0.5:
        crop = crop[::-1]
    if side == size:
        return crop
    planes = torch.from_numpy(crop.copy()).permute(0, 3, 1, 2)
    resized = F.interpolate(planes.float(), (size, size), mode="bilinear", antialias=True)
    pixels = resized.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    return np.asarray(pixels.numpy())
