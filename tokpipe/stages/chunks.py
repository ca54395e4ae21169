"""Cuts a clip into the chunks that the encoder eats. Pure arithmetic.

A tokenizer with temporal stride ``r`` turns ``f + r * j`` frames into ``1 + j`` latent frames: the
first stands for ``f`` frames (1 for a causal one, ``r`` for one that groups from the start), each
later one for the ``r`` frames that follow. Other lengths lose frames, so every chunk planned here
has a length of that form.
"""

from __future__ import annotations

from tokpipe.config.job import ChunkingConfig, JobConfig
from tokpipe.config.traits import TokenizerTraits
from tokpipe.types import ChunkSpan, Cut


def plan_chunks(
    num_frames: int, chunking: ChunkingConfig, traits: TokenizerTraits, *, first_frame: int = 0
) -> tuple[ChunkSpan, ...]:
    """Return the chunks of a clip of ``num_frames`` frames, in order.

    Every frame stands in exactly one kept latent frame. The last chunk is as short as its real
    frames allow, and filled to the next ``f + r * j`` frames by repeats of the clip's last one; a
    tokenizer that takes chunks of one length only has it filled to that length.

    - ``independent``: a chunk every ``chunk_frames`` frames, each with its own first latent.
    - ``overlap``: with ``k`` latent frames after a chunk's first and ``m = overlap_latents``, a
      chunk every ``r * (k - m)`` frames. Later chunks see ``f + r * m`` frames again and drop the
      ``1 + m`` latent frames of those, so the kept ones are as many as ``whole`` gives, and
      stand for the same frames.
    - ``streaming``: chunk 0 has ``chunk_frames`` frames, later ones ``chunk_frames - f``, since the
      encoder remembers what came before. The kept latent frames are those of ``whole``.
    - ``whole``: one chunk.

    Args:
        first_frame: under ``streaming``, the place in the clip of a piece of ``num_frames`` frames
            (``pieces_of``), whose chunks are returned.

    Raises:
        ValueError: no frames, or settings that leave the grid (a checked job never has them).
    """
    if num_frames < 1:
        raise ValueError(f"a clip of {num_frames} frames has no chunks: it needs one at least")
    if first_frame and chunking.policy != "streaming":
        raise ValueError(f"first_frame={first_frame}: only policy streaming takes clips in pieces")
    if chunking.policy == "whole":
        return (_first_chunk(0, 0, num_frames, traits),)
    _check_grid(chunking, traits)
    if chunking.policy == "independent":
        size = chunking.chunk_frames
        return tuple(
            _first_chunk(index, first, min(size, num_frames - first), traits)
            for index, first in enumerate(range(0, num_frames, size))
        )
    if chunking.policy == "overlap":
        context = traits.num_frames(1 + chunking.overlap_latents)
        return _gapless(0, num_frames, context, 1 + chunking.overlap_latents, chunking, traits)
    return _gapless(first_frame, first_frame + num_frames, 0, 0, chunking, traits)


def num_kept_latents(span: ChunkSpan, traits: TokenizerTraits) -> int:
    """Latent frames of a chunk that are kept: an image is one alone, other frames share them."""
    alone = 1 if span.first_is_image else 0
    rest = span.num_frames + span.num_pad_frames - alone
    return alone + rest // traits.temporal_stride


def pieces_of(job: JobConfig) -> Cut | None:
    """Return how clips are decoded in pieces, if the job streams them.

    A piece is as many whole chunks as fit ``sampling.max_clip_frames``.
    """
    if job.chunking.policy != "streaming":
        return None
    first_frames = job.tokenizer.traits.first_frames
    step = job.chunking.chunk_frames - first_frames
    frames = (job.sampling.max_clip_frames - first_frames) // step * step
    return Cut(first=first_frames + frames, later=frames)


def _gapless(
    start: int,
    stop: int,
    context: int,
    dropped: int,
    chunking: ChunkingConfig,
    traits: TokenizerTraits,
) -> tuple[ChunkSpan, ...]:
    """Chunks of frames ``start`` to ``stop`` whose kept latent frames are those of ``whole``.

    Later chunks see ``context`` frames again and drop the ``dropped`` latent frames of those;
    without context the encoder remembers, and what it makes of a chunk has no first latent frame.
    """
    size = chunking.chunk_frames
    step = size - (context or traits.first_frames)
    chunks = []
    if start == 0:
        chunks.append(_first_chunk(0, 0, min(size, stop), traits))
    elif (start - size) % step or start < size:
        raise ValueError(f"no chunk starts at frame {start}: the first has {size}, others {step}")
    for first in range(max(start, size), stop, step):
        frames = min(step, stop - first)
        chunks.append(
            ChunkSpan(
                index=1 + (first - size) // step,
                first_frame=first,
                num_frames=frames,
                num_pad_frames=-frames % traits.temporal_stride,
                num_context_frames=context,
                num_dropped_latents=dropped,
                first_is_image=False,
            )
        )
    return tuple(chunks)


def _first_chunk(index: int, first: int, frames: int, traits: TokenizerTraits) -> ChunkSpan:
    """A chunk that keeps all it encodes: its own first latent frame, then groups of the stride."""
    beyond = max(frames - traits.first_frames, 0)
    filled = traits.first_frames + beyond + -beyond % traits.temporal_stride
    return ChunkSpan(
        index=index,
        first_frame=first,
        num_frames=frames,
        num_pad_frames=max(filled, traits.chunk_frames or 0) - frames,
        num_context_frames=0,
        num_dropped_latents=0,
        first_is_image=traits.first_frames == 1,
    )


def _check_grid(chunking: ChunkingConfig, traits: TokenizerTraits) -> None:
    traits.check_num_frames(chunking.chunk_frames, "chunk_frames")
    latents = traits.num_latent_frames(chunking.chunk_frames) - 1
    if chunking.policy == "overlap" and chunking.overlap_latents >= latents:
        raise ValueError(
            f"overlap_latents={chunking.overlap_latents} leaves nothing new in a chunk of "
            f"{latents} latent frames after the first: use fewer, or longer chunks"
        )
    if chunking.policy == "streaming" and not latents:
        raise ValueError(
            f"chunk_frames={chunking.chunk_frames} leaves no frames for the chunks after the "
            f"first: use {traits.num_frames(2)} or more"
        )
