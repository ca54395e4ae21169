"""Encodes clips of an output again from their sources, exactly as the job did."""

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import torch

from tokpipe.config.job import JobConfig
from tokpipe.errors import ConfigError, SourceError
from tokpipe.formats.tokenizer_spec import TokenizerSpec
from tokpipe.media.quality import Comparison
from tokpipe.models.streaming import StreamState
from tokpipe.plan import PlanReader
from tokpipe.reader import Clip
from tokpipe.reader.shard_codes import Codes
from tokpipe.reconstruct.frames import Reconstructor, SourceFrames, weights_of
from tokpipe.stages.encode import EncodeStage
from tokpipe.types import EncodedClip, Failed, Rejected


class Reencoder:
    """The decode and encode stages of an output's job, on the kind of device that it used."""

    def __init__(self, job: JobConfig, spec: TokenizerSpec, plan: PlanReader, device: str) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                "the output was encoded on GPUs, but this machine has none. Other devices round "
                "differently, so correct codes could differ: audit with --sample on a machine with "
                "a GPU"
            )
        encode = job.encode
        if device != "cuda":
            encode = encode.model_copy(update={"batch_chunks": 1})  # as jobs do on a CPU
        self._stage = EncodeStage(job.tokenizer, job.chunking, encode)
        self._stage.setup(device, weights_of(job, spec).encoding)
        self._streams = job.chunking.policy == "streaming"
        self._sources = SourceFrames(job, plan)
        self._reconstructor: Reconstructor | None = None
        with suppress(ConfigError):  # the tokenizer has no decoder
            self._reconstructor = Reconstructor(job, spec, device)

    def close(self) -> None:
        """Stop the decoding process and remove fetched sources."""
        self._sources.close()

    def codes(self, clip: Clip) -> Iterator[Codes]:
        """Encode the clip again, and yield the (t, h, w) codes of each chunk."""
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

    def psnr_db(self, clip: Clip, codes: list[Codes]) -> tuple[float, float] | None:
        """Return the PSNR of the clip's stored codes, and of ``codes``, against the source.

        None if the tokenizer has no decoder.
        """
        if self._reconstructor is None:
            return None
        again = [
            replace(chunk, codes=block) for chunk, block in zip(clip.chunks, codes, strict=True)
        ]
        stored_quality, again_quality = Comparison(), Comparison()
        for original, ours, theirs in zip(
            self._sources.blocks(clip),
            self._reconstructor.frames(clip.chunks),
            self._reconstructor.frames(again),
            strict=True,
        ):
            stored_quality.add(original, ours)
            again_quality.add(original, theirs)
        return stored_quality.quality().psnr_db, again_quality.quality().psnr_db


def equal_fraction(clip: Clip, codes: list[Codes]) -> float:
    """Return the fraction of the clip's stored codes that equal ``codes``; 0 if shapes differ."""
    if [chunk.codes.shape for chunk in clip.chunks] != [block.shape for block in codes]:
        return 0.0
    pairs = zip(clip.chunks, codes, strict=True)
    equal = sum(int((chunk.codes == block).sum()) for chunk, block in pairs)
    return equal / sum(math.prod(block.shape) for block in codes)
