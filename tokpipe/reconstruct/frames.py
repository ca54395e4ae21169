"""Clips of an output decoded again from their codes and sources, and encoded again."""

import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from tokpipe.config.job import MAX_CLIP_BYTES, JobConfig
from tokpipe.errors import ConfigError, NotFound, SourceError
from tokpipe.formats.checks import damaged
from tokpipe.formats.shard import TokenizerSpec
from tokpipe.media.quality import Frames, Quality
from tokpipe.models.process import usable_device
from tokpipe.models.streaming import StreamState
from tokpipe.models.tokenizers import VideoTokenizer, build_tokenizer
from tokpipe.reader import Chunk, Clip, Output
from tokpipe.reconstruct.sources import Sources
from tokpipe.stages.chunks import pieces_of
from tokpipe.stages.encode import EncodeStage
from tokpipe.types import Codes, DecodedClip, EncodedClip, Failed, Rejected
from tokpipe.weights.read import TokenizerWeights, read_weights


class Reconstructor:
    """The tokenizer of one output, with its decoder, on one device."""

    def __init__(self, job: JobConfig, spec: TokenizerSpec, device: str | torch.device) -> None:
        weights = weights_of(job, spec, with_decoder=True)
        self.device = torch.device(device)
        self.tokenizer: VideoTokenizer = build_tokenizer(
            job.tokenizer, weights.encoding, with_decoder=True, decoder_weights=weights.decoding
        ).to(self.device)
        # A smaller dtype saves GPU memory; on a CPU it saves nothing.
        on_gpu = self.device.type == "cuda"
        self.tokenizer.compute_in(getattr(torch, job.encode.dtype) if on_gpu else torch.float32)
        self.policy = spec.chunk_policy

    def frames(self, chunks: Iterable[Chunk]) -> Iterator[NDArray[np.uint8]]:
        """Yield the (T, H, W, 3) real frames of each chunk of a clip, in order.

        Each chunk is decoded as it was encoded: alone (``independent``, ``whole``), after the
        latent frames before it (``overlap``), or with the decoder's state carried over
        (``streaming``). Padding and context are cut off. Memory does not grow with the clip.
        """
        state: StreamState | None = None
        before: Codes | None = None
        traits = self.tokenizer.traits
        for chunk in chunks:
            codes, context = chunk.codes, chunk.n_context_frames
            num_pixels = math.prod(codes.shape[:3]) * traits.temporal_stride
            num_pixels *= traits.spatial_stride**2
            if 3 * num_pixels > 2 * MAX_CLIP_BYTES or (context and before is None):
                shape = "x".join(map(str, codes.shape))
                found = f"{shape} codes, {context} frames of context"
                raise damaged(f"clip {chunk.clip_id}", f"no job writes a chunk of {found}")
            if context and before is not None:
                # The first latent frame covered several frames when it was encoded, but decodes to
                # one. The frames it affects are context, cut off below.
                codes = np.concatenate([before[-traits.num_latent_frames(context) :], codes])
            placed = torch.from_numpy(codes.astype(np.int64)).unsqueeze(0).to(self.device)
            if self.policy == "streaming":
                pixels, state = self.tokenizer.decode_piece(placed, state)
            else:
                pixels, before = self.tokenizer.decode(placed), codes
            frames = pixels[0, context : context + chunk.n_frames].cpu().numpy()
            if not 0 < len(frames) == chunk.n_frames:
                raise damaged(f"clip {chunk.clip_id}", f"it has not {chunk.n_frames} frames")
            yield frames


def weights_of(
    job: JobConfig, spec: TokenizerSpec, *, with_decoder: bool = False
) -> TokenizerWeights:
    """Read the weights that encoded an output."""
    weights = read_weights(job.tokenizer, job.storage, with_decoder=with_decoder)
    if weights.hash != spec.weights_hash:
        found = f"holds {weights.hash}, but the codes were made by {spec.weights_hash}"
        why = "Other weights encode to different codes, and decode these codes to noise"
        do = "Restore the earlier file, or name it with --weights"
        raise ConfigError(f"{job.tokenizer.weights}: {found}. {why}. {do}")
    return weights


class SideBySide(Sources):
    """Decodes clips and their sources.

    Raises:
        ConfigError: torch cannot use the device, or the tokenizer has no decoder or needs more
            trust, or its weights differ from those that encoded.
    """

    def __init__(self, output: Output, device: str = "auto", *, needs_decoder: bool = True) -> None:
        job = output.trusted_job()
        super().__init__(output, job, pieces_of(job))
        usable = usable_device(device)
        self._reconstructor: Reconstructor | None = None
        with suppress(*() if needs_decoder else (ConfigError,)):
            self._reconstructor = Reconstructor(self._job, output.tokenizer, usable)

    def shown(self, clip: Clip, quality: Quality | None, axis: int = 1) -> Iterator[Frames]:
        """Yield the (T, H, W, 3) frames of each chunk of a clip.

        With ``quality``, which measures them, they follow those of the source along ``axis``.
        """
        assert self._reconstructor is not None
        blocks = self._reconstructor.frames(clip.chunks)
        if quality is None:
            yield from blocks
            return
        for block, original in zip(blocks, self.source_blocks(clip), strict=True):
            quality.add(original, block)
            yield np.concatenate([original, block], axis)

    def source_blocks(self, clip: Clip) -> Iterator[Frames]:
        """Yield the (T, H, W, 3) frames of each chunk of a clip, decoded again as the job did."""
        pieces = (decoded.frames for decoded in self.decoded(clip))
        rest = np.empty((0, 0, 0, 3), np.uint8)
        for chunk in clip.chunks:
            while len(rest) < chunk.n_frames:
                if (piece := next(pieces, None)) is None:
                    found = f"has fewer frames than were encoded as clip {clip.clip_id}"
                    why = "so it was replaced by another video. The comparison would be meaningless"
                    raise NotFound(f"{clip.source_uri}: {found}, {why}. Decode without comparing")
                rest = np.concatenate([rest, piece]) if len(rest) else piece
            yield rest[: chunk.n_frames]
            rest = rest[chunk.n_frames :]

    def decoded(self, clip: Clip) -> Iterator[DecodedClip]:
        """Yield what an encoder receives of the clip: one piece, or several if it is streamed."""
        stage, item = self._source(clip.plan_row)
        item = replace(item, segment=clip.segment, num_segments=clip.num_segments)
        last = False
        while not last:
            (decoded,) = stage.process([item])
            assert not isinstance(decoded, EncodedClip), "nothing is reused here"
            if not isinstance(decoded, DecodedClip):
                found = f"{clip.source_uri}: cannot be compared with clip {clip.clip_id}"
                why = f"because it does not decode any more: {decoded.message}"
                do = "Decode without comparing, or restore the file that was tokenized"
                raise SourceError(decoded.reason, f"{found}, {why}. {do}")
            yield decoded
            last = decoded.piece.is_last
            item = replace(item, piece=item.piece + 1, num_pieces=decoded.piece.num_pieces)


class Reencoder(SideBySide):
    """Encodes clips of one output again, as its job did, to compare the codes."""

    def __init__(self, output: Output) -> None:
        device = output.record.device
        if device == "cuda" and not torch.cuda.is_available():
            found = "the output was encoded on GPUs, but this machine has none"
            why = "Other devices round differently, so correct codes could differ"
            raise ConfigError(f"{found}. {why}: audit with --sample on a machine with a GPU")
        super().__init__(output, device, needs_decoder=False)
        job, encode = self._job, self._job.encode
        if device != "cuda":
            encode = encode.model_copy(update={"batch_chunks": 1})  # as jobs do on a CPU
        self._stage = EncodeStage(job.tokenizer, job.chunking, encode)
        self._stage.setup(device, weights_of(job, output.tokenizer).encoding)

    def compare(self, clip: Clip) -> tuple[float, float | None, float | None]:
        """Encode the clip again; return which fraction of its codes came out the same.

        Also the PSNR of the stored codes and of the new ones, decoded, against the source: None if
        the tokenizer has no decoder, or no code is the same.
        """
        codes = list(self._codes(clip))
        if [chunk.codes.shape for chunk in clip.chunks] != [block.shape for block in codes]:
            return 0.0, None, None
        pairs = list(zip(clip.chunks, codes, strict=True))
        equal = sum(int((chunk.codes == block).sum()) for chunk, block in pairs)
        if self._reconstructor is None or not equal:
            return equal / clip.codes.size, None, None
        qualities = Quality(), Quality()
        again = [replace(chunk, codes=block) for chunk, block in pairs]
        decoded = map(self._reconstructor.frames, (clip.chunks, again))
        for original, *both in zip(self.source_blocks(clip), *decoded, strict=True):
            for quality, frames in zip(qualities, both, strict=True):
                quality.add(original, frames)
        return equal / clip.codes.size, qualities[0].psnr_db, qualities[1].psnr_db

    def _codes(self, clip: Clip) -> Iterator[Codes]:
        state: StreamState | None = None
        result: EncodedClip | Rejected | Failed
        for piece in self.decoded(clip):
            if self._job.chunking.policy == "streaming":
                result, state = self._stage.process_piece(piece, state)
            else:
                (result,) = self._stage.process([piece])
            if isinstance(result, Rejected | Failed):
                raise SourceError(result.reason, result.message)
            yield from result.codes
