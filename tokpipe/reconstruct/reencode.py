"""Encodes clips of an output again from their sources, exactly as the job did."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tokpipe.config.job import JobConfig
from tokpipe.errors import ConfigError, SourceError
from tokpipe.formats.tokenizer_spec import TokenizerSpec
from tokpipe.media.quality import Comparison
from tokpipe.models.streaming import StreamState
from tokpipe.plan import PlanReader
from tokpipe.reader import Chunk, Clip
from tokpipe.reconstruct.reconstructor import Reconstructor
from tokpipe.reconstruct.source import Rechunked, SourceFrames
from tokpipe.stages.encode import EncodeStage
from tokpipe.types import EncodedClip, Failed, Rejected
from tokpipe.weights.read import read_weights


class Reencoder:
    """The decode and encode stages of an output's job, on the kind of device that it used.

    Args:
        job: the resolved job of the output.
        spec: what the output says of its tokenizer.
        device: the kind of device that encoded it, ``"cpu"`` or ``"cuda"``.
        scratch: a local folder for sources that have to be fetched.

    Raises:
        ConfigError: there is no such device here, or the weights are not those that encoded.
    """

    def __init__(
        self, job: JobConfig, spec: TokenizerSpec, plan: PlanReader, device: str, scratch: Path
    ) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                "the output was encoded on GPUs and there is none here. Another kind of device "
                "rounds otherwise, so its codes would differ without a fault: audit with --sample "
                "on a machine with a GPU"
            )
        weights = read_weights(job.tokenizer, job.storage)
        if weights.hash != spec.weights_hash:
            raise ConfigError(
                f"{job.tokenizer.weights}: holds {weights.hash}, but the codes were made by "
                f"{spec.weights_hash}. Other weights give other codes. Bring the earlier file back "
                "to where the job names it"
            )
        # As the job does: a CPU encodes chunk by chunk.
        encode = (
            job.encode if device == "cuda" else job.encode.model_copy(update={"batch_chunks": 1})
        )
        self._stage = EncodeStage(job.tokenizer, job.chunking, encode)
        self._stage.setup(device, weights.encoding)
        self._streams = job.chunking.policy == "streaming"
        self._sources = SourceFrames(job, plan, scratch)
        self._reconstructor = _reconstructor(job, spec, device)

    def close(self) -> None:
        """End the decoding child and remove what was fetched."""
        self._sources.close()

    def codes(self, clip: Clip) -> Iterator[NDArray[np.uint16] | NDArray[np.uint32]]:
        """Yield the (t, h, w) codes of each chunk of the clip, made afresh.

        Raises:
            SourceError: the source is gone or not what it was, or is refused by the encoder.
        """
        state: StreamState | None = None
        result: EncodedClip | Rejected | Failed
        for piece in self._sources.decoded(clip):
            if self._streams:
                result, state = self._stage.process_piece(piece, state)
            else:
                (result,) = self._stage.process([piece])
            if isinstance(result, Rejected | Failed):
                raise SourceError(result.reason, result.message)
            yield from result.codes

    def psnr_db(
        self, clip: Clip, codes: list[NDArray[np.uint16] | NDArray[np.uint32]]
    ) -> tuple[float, float] | None:
        """PSNR against the source of the clip's stored codes, and of ``codes`` in their place;
        None if the tokenizer has no decoder."""
        if self._reconstructor is None:
            return None
        again: list[Chunk] = [
            replace(chunk, codes=block) for chunk, block in zip(clip.chunks, codes, strict=True)
        ]
        sources = Rechunked(self._sources.frames(clip))
        stored_quality, again_quality = Comparison(), Comparison()
        for ours, theirs in zip(
            self._reconstructor.frames(clip.chunks),
            self._reconstructor.frames(again),
            strict=True,
        ):
            original = sources.take(len(ours), clip)
            stored_quality.add(original, ours)
            again_quality.add(original, theirs)
        return stored_quality.quality().psnr_db, again_quality.quality().psnr_db


def equal_fraction(clip: Clip, codes: list[NDArray[np.uint16] | NDArray[np.uint32]]) -> float:
    """Share of the clip's stored codes that ``codes`` repeat; 0 if they have another shape."""
    if [chunk.codes.shape for chunk in clip.chunks] != [block.shape for block in codes]:
        return 0.0
    equal = sum(
        int((chunk.codes == block).sum()) for chunk, block in zip(clip.chunks, codes, strict=True)
    )
    return equal / sum(math.prod(block.shape) for block in codes)


def _reconstructor(job: JobConfig, spec: TokenizerSpec, device: str) -> Reconstructor | None:
    try:
        return Reconstructor(job, spec, device)
    except ConfigError:  # the tokenizer has no decoder
        return None
