"""Stages that do nothing but answer, so that only the cost of the runtime itself remains.

They go through the same actors, leases, object store and manifest as real ones. Pixels and codes
are few; the declared size of a clip decides when shards are closed, as in a real job.
"""

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tokpipe.config.job import StoreOptions
from tokpipe.stages.decode import DecodeStage
from tokpipe.stages.encode import EncodeStage
from tokpipe.stages.reuse import ReusedOutput
from tokpipe.stages.write import WriteStage
from tokpipe.types import (
    ChunkSpan,
    ClipRef,
    DecodedClip,
    EncodedClip,
    Failed,
    Receipt,
    Rejected,
    WorkItem,
)

CLIP_FRAMES = 17
_CHUNK = ChunkSpan(0, 0, 1, 0, 0, 0, True)
_FRAMES = np.zeros((1, 8, 8, 3), np.uint8)
_CODES = np.zeros((1, 1, 1), np.uint16)
_PTS = np.zeros(1)


def ref_of(item: WorkItem) -> ClipRef:
    """The clip of an item whose source is not cut."""
    return ClipRef(item.row_id, item.row, 0, 1, item.source_uri)


class FreeDecode(DecodeStage):
    """Returns one small frame for each item."""

    def __init__(self) -> None:
        self.fetched_s, self.fetched_bytes = 0.0, 0

    def setup(self, reuses: Sequence[ReusedOutput] = ()) -> None:
        pass

    def process(self, items: list[WorkItem]) -> list[DecodedClip | EncodedClip | Rejected | Failed]:
        return [DecodedClip(ref_of(item), _FRAMES, _PTS, 8.0, "free") for item in items]


class FreeEncode(EncodeStage):
    """Returns one code for each clip."""

    def __init__(self) -> None:
        pass

    def setup(self, device: str, weights: bytes | None) -> None:
        pass

    @property
    def path(self) -> None:
        """No device, so nothing to report about it."""

    def process(self, clips: Sequence[DecodedClip]) -> list[EncodedClip | Rejected | Failed]:
        return [
            EncodedClip(clip.ref, (_CHUNK,), (_CODES,), clip.pts_s, clip.fps, clip.backend)
            for clip in clips
        ]


class FreeWrite(WriteStage):
    """Returns a receipt for a shard that was never written."""

    def __init__(self) -> None:
        self.storage = StoreOptions()  # whose deadline the driver asks for

    def setup(self) -> None:
        pass

    def process(self, shard_name: str, clips: Sequence[EncodedClip]) -> Receipt:
        return receipt_of(shard_name, tuple(clip.ref for clip in clips))


def receipt_of(shard_name: str, refs: tuple[ClipRef, ...]) -> Receipt:
    """A receipt for a shard of these clips, each of which has one code."""
    return Receipt(
        shard=f"shards/{shard_name}.parquet",
        size_bytes=2 * len(refs),
        sha256="0" * 64,
        num_rows=len(refs),
        num_codes=len(refs),
        num_frames=CLIP_FRAMES * len(refs),
        grid=(1, 1),
        side_table=f"clips/{shard_name}.parquet",
        side_table_sha256="0" * 64,
        side_table_size_bytes=len(refs),
        clips=refs,
    )


class FakeAccelerator(nn.Module):
    """A tokenizer that takes ``chunk_s`` per chunk but no CPU, as an accelerator does."""

    temporal_stride, spatial_stride = 4, 8

    def __init__(self, chunk_s: float) -> None:
        super().__init__()
        self.chunk_s = chunk_s

    def encode(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, t, h, w) zeros."""
        clips, _, frames, height, width = x.shape
        time.sleep(self.chunk_s * clips)
        latents, stride = 1 + (frames - 1) // self.temporal_stride, self.spatial_stride
        return torch.zeros(clips, latents, height // stride, width // stride, dtype=torch.int64)
