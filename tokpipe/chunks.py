"""Cuts a clip into the chunks that the encoder eats. Pure arithmetic.

A causal encoder with temporal stride ``r`` turns ``1 + r * j`` frames into ``1 + j`` latent
frames: the first stands for one frame, each later one for the ``r`` frames that follow. Other
lengths lose frames in its pooling layers, so every chunk planned here has a length of that form.
"""

from __future__ import annotations

from tokpipe.config.job import ChunkingConfig
from tokpipe.types import ChunkSpan


def plan_chunks(
    num_frames: int, chunking: ChunkingConfig, temporal_stride: int
) -> tuple[ChunkSpan, ...]:
    """Return the chunks of a clip of ``num_frames`` frames, in order.

    Every frame stands in exactly one kept latent frame. The last chunk is as short as its real
    frames allow: it is filled to the next ``1 + r * j`` frames by repeats of the clip's last one.

    - ``independent``: a chunk every ``chunk_frames`` frames, each with its own image latent.
    - ``overlap``: with ``k`` latent frames after a chunk's first and ``m = overlap_latents``, a
      chunk every ``r * (k - m)`` frames. Later chunks see ``1 + r * m`` frames again and drop the
      ``1 + m`` latent frames of those, so the kept ones are as many as ``whole`` gives, and
      stand for the same frames.
    - ``whole``: one chunk.

    Raises:
        ValueError: no frames, or settings that leave the grid (a checked job never has them).
    """
    if num_frames < 1:
        raise ValueError(f"a clip of {num_frames} frames has no chunks: it needs one at least")
    if temporal_stride < 1:
        raise ValueError(f"temporal_stride={temporal_stride} must be 1 or more")
    if chunking.policy == "whole":
        return (_image_chunk(0, 0, num_frames, temporal_stride),)
    _check_grid(chunking, temporal_stride)
    if chunking.policy == "independent":
        size = chunking.chunk_frames
        return tuple(
            _image_chunk(index, first, min(size, num_frames - first), temporal_stride)
            for index, first in enumerate(range(0, num_frames, size))
        )
    return _overlapping(num_frames, chunking, temporal_stride)


def _overlapping(
    num_frames: int, chunking: ChunkingConfig, temporal_stride: int
) -> tuple[ChunkSpan, ...]:
    size, dropped = chunking.chunk_frames, 1 + chunking.overlap_latents
    context = 1 + temporal_stride * chunking.overlap_latents
    chunks = [_image_chunk(0, 0, min(size, num_frames), temporal_stride)]
    for index, first in enumerate(range(size, num_frames, size - context), start=1):
        frames = min(size - context, num_frames - first)
        chunks.append(
            ChunkSpan(
                index=index,
                first_frame=first,
                num_frames=frames,
                num_pad_frames=-frames % temporal_stride,
                num_context_frames=context,
                num_dropped_latents=dropped,
                first_is_image=False,
            )
        )
    return tuple(chunks)


def _image_chunk(index: int, first: int, frames: int, temporal_stride: int) -> ChunkSpan:
    """A chunk that keeps all it encodes: its first frame alone, then groups of the stride."""
    return ChunkSpan(
        index=index,
        first_frame=first,
        num_frames=frames,
        num_pad_frames=-(frames - 1) % temporal_stride,
        num_context_frames=0,
        num_dropped_latents=0,
        first_is_image=True,
    )


def _check_grid(chunking: ChunkingConfig, temporal_stride: int) -> None:
    latents, extra = divmod(chunking.chunk_frames - 1, temporal_stride)
    if extra:
        raise ValueError(
            f"chunk_frames={chunking.chunk_frames} is not 1 plus a multiple of the temporal stride "
            f"{temporal_stride}, so the encoder would lose frames: use "
            f"{chunking.chunk_frames - extra} or {chunking.chunk_frames - extra + temporal_stride}"
        )
    if chunking.policy == "overlap" and chunking.overlap_latents >= latents:
        raise ValueError(
            f"overlap_latents={chunking.overlap_latents} leaves nothing new in a chunk of "
            f"{latents} latent frames after the first: use fewer, or longer chunks"
        )
