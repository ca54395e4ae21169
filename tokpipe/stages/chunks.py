"""Cuts a clip into the chunks that are encoded at once. Pure arithmetic.

With the traits ``f = first_frames`` and ``r = temporal_stride``, every chunk has ``f + r * j``
frames. Any other length would lose some.
"""

from tokpipe.config.job import ChunkingConfig, JobConfig
from tokpipe.config.traits import TokenizerTraits
from tokpipe.types import ChunkSpan, Cut


def plan_chunks(
    num_frames: int, chunking: ChunkingConfig, traits: TokenizerTraits, *, first_frame: int = 0
) -> tuple[ChunkSpan, ...]:
    """Return the chunks of a clip of ``num_frames`` frames, in order.

    Every frame belongs to exactly one kept latent frame. The last chunk is as short as possible:
    it is padded with repeats of the clip's last frame to the next ``f + r * j`` frames, or to the
    tokenizer's only chunk length if it has one.

    - ``independent``: a chunk every ``chunk_frames`` frames, each with its own first latent.
    - ``overlap``: with ``k`` latent frames after a chunk's first and ``m = overlap_latents``, a
      chunk every ``r * (k - m)`` frames. Later chunks see ``f + r * m`` frames again and drop
      their ``1 + m`` latent frames, so the kept ones are those of ``whole``.
    - ``streaming``: chunk 0 has ``chunk_frames`` frames, later ones ``chunk_frames - f``, because
      the encoder remembers what came before. The kept latent frames are those of ``whole``.
    - ``whole``: one chunk.

    With ``first_frame``, these are the chunks of a streamed clip's piece that starts there.
    """
    if chunking.policy == "whole":
        return (_first_chunk(0, 0, num_frames, traits),)
    size, stop = chunking.chunk_frames, first_frame + num_frames
    if chunking.policy == "independent":
        starts = enumerate(range(0, stop, size))
        return tuple(_first_chunk(i, at, min(size, stop - at), traits) for i, at in starts)
    # Without context the encoder continues from its state, and later chunks have no first latent.
    dropped = 1 + chunking.overlap_latents if chunking.policy == "overlap" else 0
    context = traits.num_frames(dropped) if dropped else 0
    step = size - (context or traits.first_frames)
    chunks = [] if first_frame else [_first_chunk(0, 0, min(size, stop), traits)]
    for first in range(max(first_frame, size), stop, step):
        index, frames = 1 + (first - size) // step, min(step, stop - first)
        pad = -frames % traits.temporal_stride
        chunks.append(ChunkSpan(index, first, frames, pad, context, dropped, first_is_image=False))
    return tuple(chunks)


def num_kept_latents(span: ChunkSpan, traits: TokenizerTraits) -> int:
    return traits.num_latent_frames(span.num_input_frames) - span.num_dropped_latents


def largest_chunk(job: JobConfig) -> tuple[int, int, int]:
    """(T, H, W) of the largest chunks that a job encodes."""
    spans = plan_chunks(job.sampling.max_clip_frames, job.chunking, job.tokenizer.traits)
    size = max(job.frames.sizes, key=lambda size: size[0] * size[1])
    return max(span.num_input_frames for span in spans), *size


def pieces_of(job: JobConfig) -> Cut | None:
    """Return how clips are divided into pieces, or None if the job does not stream.

    A piece has as many whole chunks as fit into ``sampling.max_clip_frames``.
    """
    if job.chunking.policy != "streaming":
        return None
    first_frames = job.tokenizer.traits.first_frames
    step = job.chunking.chunk_frames - first_frames
    frames = (job.sampling.max_clip_frames - first_frames) // step * step
    return Cut(first=first_frames + frames, later=frames)


def _first_chunk(index: int, first: int, frames: int, traits: TokenizerTraits) -> ChunkSpan:
    """A chunk that starts without context and keeps all of its latent frames."""
    beyond = max(frames - traits.first_frames, 0)
    filled = traits.first_frames + beyond + -beyond % traits.temporal_stride
    pad, is_image = max(filled, traits.chunk_frames or 0) - frames, traits.first_frames == 1
    return ChunkSpan(index, first, frames, pad, 0, 0, first_is_image=is_image)
