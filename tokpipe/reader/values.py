"""What the reader gives: clips with their chunks, and where a shard is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Chunk:
    """The codes of one chunk of a clip."""

    codes: NDArray[np.uint16] | NDArray[np.uint32]
    """(t, h, w), 0 <= code < codebook size, owned by this chunk."""
    first_is_image: bool
    """The first latent frame stands for one frame, and not for ``temporal_stride`` of them."""
    frame_start: int
    """First real frame that the codes stand for, counted in the resampled clip."""
    n_frames: int
    """Real frames that the codes stand for."""
    n_pad_frames: int
    """Repeats of the last frame that were encoded behind them."""
    n_context_frames: int
    """Frames that were encoded in front of them and whose codes were dropped."""
    start_pts_s: float
    """Presentation time of the first real frame, in the source."""
    end_pts_s: float
    """Presentation time of the last real frame."""


@dataclass(frozen=True, slots=True)
class Clip:
    """One tokenized clip."""

    clip_id: str
    source_uri: str
    fps: float
    """Frames per second after resampling."""
    chunks: tuple[Chunk, ...]
    metadata: dict[str, Any]
    """Columns carried from the source."""
    plan_row: int
    """Position in the stored plan of the row that this clip comes from."""
    segment: int
    """Which part of the row's span it is, when that was cut into ``num_segments`` clips."""
    num_segments: int
    marks: tuple[str, ...] = ()
    """What to know of it: ``"damaged"`` if its video was, and only its first frames are here."""
    damage: str | None = None
    """What is missing of a damaged one, in words."""

    @property
    def codes(self) -> NDArray[np.uint16] | NDArray[np.uint32]:
        """(t, h, w) codes of all chunks, one after the other in time."""
        return np.concatenate([chunk.codes for chunk in self.chunks])


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """One shard as the manifest lists it."""

    key: str
    """Below the output."""
    uri: str
    size_bytes: int
    sha256: str
    num_rows: int
    num_codes: int
    num_frames: int
    num_clips: int
    grid: tuple[int, int]
    """(h, w) of every chunk in it."""
    side_table: str
    """Key of the table with one row per clip."""
    side_table_uri: str
    side_table_size_bytes: int
    side_table_sha256: str
