"""What the reader returns: clips with their chunks, and shards."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokpipe.formats.shard_reader import Chunk


@dataclass(frozen=True, slots=True)
class Clip:
    """One tokenized clip."""

    clip_id: str
    source_uri: str
    fps: float  # Frames per second after resampling
    chunks: tuple[Chunk, ...]
    metadata: dict[str, Any]  # Columns carried from the source
    plan_row: int  # Position of the clip's row in the stored plan
    segment: int  # Which of the ``num_segments`` clips of that row this is
    num_segments: int
    marks: tuple[str, ...] = ()
    """``"damaged"`` if the video is damaged and only its first frames are here."""
    damage: str | None = None  # What is missing from a damaged clip, in words

    @property
    def codes(self) -> NDArray[np.uint16] | NDArray[np.uint32]:
        """(t, h, w) codes of all chunks, concatenated in time."""
        return np.concatenate([chunk.codes for chunk in self.chunks])


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """One shard as the manifest lists it."""

    key: str  # Relative to the output's prefix
    uri: str
    size_bytes: int
    sha256: str
    num_rows: int
    num_codes: int
    num_frames: int
    num_clips: int
    grid: tuple[int, int]  # (h, w) of all its chunks
    side_table: str  # Key of the table with one row per clip
    side_table_uri: str
    side_table_size_bytes: int
    side_table_sha256: str
