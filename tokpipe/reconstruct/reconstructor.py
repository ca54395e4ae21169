"""Decodes a clip's codes to frames, chunk by chunk."""

from __future__ import annotations

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
from tokpipe.weights.read import read_weights


class Reconstructor:
    """The tokenizer of one output, with its decoder, on one device.

    Args:
        job: the resolved job of the output.
        spec: what the output says of its tokenizer.
        device: a torch device, such as ``"cuda"``.

    Raises:
        ConfigError: the tokenizer has no decoder, or its weights are not those that encoded.
    """

    def __init__(self, job: JobConfig, spec: TokenizerSpec, device: str) -> None:
        weights = read_weights(job.tokenizer, job.storage, with_decoder=True)
        if weights.hash != spec.weights_hash:
            raise ConfigError(
                f"{job.tokenizer.weights}: holds {weights.hash}, but the codes were made by "
                f"{spec.weights_hash}. The decoder of another model would show noise. Bring the "
                "earlier file back to where the job names it"
            )
        self.device = torch.device(device)
        self.tokenizer: VideoTokenizer = build_tokenizer(
            job.tokenizer, weights.encoding, with_decoder=True, decoder_weights=weights.decoding
        ).to(self.device)
        # Colours gain nothing from the types that save time on a GPU, but its memory does.
        on_gpu = self.device.type == "cuda"
        self.tokenizer.compute_in(getattr(torch, job.encode.dtype) if on_gpu else torch.float32)
        self.policy = spec.chunk_policy

    def frames(self, chunks: Iterable[Chunk]) -> Iterator[NDArray[np.uint8]]:
        """Yield the (T, H, W, 3) real frames of each chunk of a clip, in order.

        Each chunk is decoded as it was encoded: alone (``independent``, ``whole``), with the
        latent frames before it in view (``overlap``), or with the decoder's state carried over
        (``streaming``). Padding and context are cut off. Memory does not grow with the clip.
        """
        state: StreamState | None = None
        before: NDArray[np.uint16] | NDArray[np.uint32] | None = None
        for chunk in chunks:
            if self.policy == "streaming":
                pixels, state = self.tokenizer.decode_piece(self._on_device(chunk.codes), state)
                first = 0
            else:
                # Under overlap the first latent frame in view stood for several frames, and is
                # now taken for one that stands for one: those frames are cut off below.
                num_context = self._num_context_latents(chunk)
                codes = chunk.codes
                if num_context:
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
