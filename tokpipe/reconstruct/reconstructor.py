"""Decodes a clip's codes to frames, chunk by chunk."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from tokpipe.config.job import JobConfig
from tokpipe.errors import ConfigError
from tokpipe.formats.tokenizer_spec import TokenizerSpec
from tokpipe.models.streaming import StreamState
from tokpipe.models.tokenizers import VideoTokenizer, build_tokenizer
from tokpipe.reader import Chunk
from tokpipe.weights.read import TokenizerWeights, read_weights


class Reconstructor:
    """The tokenizer of one output, with its decoder, on one device."""

    def __init__(self, job: JobConfig, spec: TokenizerSpec, device: str) -> None:
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
        before: NDArray[np.uint16] | NDArray[np.uint32] | None = None
        for chunk in chunks:
            if self.policy == "streaming":
                pixels, state = self.tokenizer.decode_piece(self._on_device(chunk.codes), state)
                first = 0
            else:
                # Under overlap, the first latent frame covered several frames when it was encoded,
                # but decodes to one. The frames it affects are context, cut off below.
                codes = chunk.codes
                if num_context := self._num_context_latents(chunk):
                    assert before is not None, "a clip's first chunk has no context"
                    codes = np.concatenate([before[-num_context:], codes])
                before = codes
                pixels = self.tokenizer.decode(self._on_device(codes))
                first = chunk.n_context_frames
            yield pixels[0, first : first + chunk.n_frames].cpu().numpy()

    def _num_context_latents(self, chunk: Chunk) -> int:
        if chunk.n_context_frames == 0:
            return 0
        traits = self.tokenizer.traits
        return 1 + (chunk.n_context_frames - traits.first_frames) // traits.temporal_stride

    def _on_device(self, codes: NDArray[np.uint16] | NDArray[np.uint32]) -> torch.Tensor:
        return torch.from_numpy(codes.astype(np.int64)).unsqueeze(0).to(self.device)


def weights_of(
    job: JobConfig, spec: TokenizerSpec, *, with_decoder: bool = False
) -> TokenizerWeights:
    """Read the weights that encoded an output."""
    weights = read_weights(job.tokenizer, job.storage, with_decoder=with_decoder)
    if weights.hash != spec.weights_hash:
        raise ConfigError(
            f"{job.tokenizer.weights}: holds {weights.hash}, but the codes were made by "
            f"{spec.weights_hash}. Other weights encode to different codes, and decode these codes "
            "to noise. Restore the earlier file at the location in the job"
        )
    return weights
