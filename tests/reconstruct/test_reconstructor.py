"""Codes decode to frames by the policy that encoded them."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.end_to_end.jobs import WITH_DECODER
from tests.reader.reader_helpers import store_with
from tokpipe.config.job import JobConfig
from tokpipe.errors import ConfigError
from tokpipe.formats.shard import TokenizerSpec
from tokpipe.models.tokenizers import VideoTokenizer, build_tokenizer
from tokpipe.reader import Chunk, Output
from tokpipe.reconstruct.frames import Reconstructor
from tokpipe.stages.encode import EncodeStage
from tokpipe.types import ClipRef, DecodedClip, EncodedClip


def job_config(chunking: dict[str, Any], **tokenizer: Any) -> JobConfig:
    settings = {
        "dataset": "test",
        "sources": [{"kind": "files", "uri": "/nowhere/*.mp4"}],
        "output": {"uri": "/nowhere/out"},
        "frames": {"size": [16, 24]},
        "tokenizer": {**WITH_DECODER, **tokenizer},
        "chunking": chunking,
        "encode": {"device": "cpu", "batch_chunks": 1},
    }
    return JobConfig.model_validate_json(json.dumps(settings))


def pixels(num_frames: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (num_frames, 16, 24, 3), dtype=np.uint8)


def encoded(job: JobConfig, frames: NDArray[np.uint8]) -> tuple[Chunk, ...]:
    """Encode frames, write them to an output, and read it."""
    stage = EncodeStage(job.tokenizer, job.chunking, job.encode)
    stage.setup("cpu", None)
    pts_s = np.arange(len(frames)) / 8
    ref = ClipRef("clip", 0, 0, 1, "/nowhere/a.mp4")
    (clip,) = stage.process([DecodedClip(ref, frames, pts_s, 8.0, "pyav")])
    assert isinstance(clip, EncodedClip)
    return Output(store_with([clip])).clip("clip").chunks


def reconstructor(job: JobConfig) -> Reconstructor:
    spec = TokenizerSpec.of(job.tokenizer, job.chunking, "random, seed 0")
    return Reconstructor(job, spec, "cpu")


def model(job: JobConfig) -> VideoTokenizer:
    return build_tokenizer(job.tokenizer, None, with_decoder=True)


def decoded(tokenizer: VideoTokenizer, codes: NDArray[Any]) -> NDArray[np.uint8]:
    batch = torch.from_numpy(codes.astype(np.int64))[None]
    frames: NDArray[np.uint8] = tokenizer.decode(batch)[0].numpy()
    return frames


@pytest.mark.parametrize("num_frames", [1, 9, 11, 20])
def test_independent_chunks_are_decoded_alone_and_without_padding(num_frames: int) -> None:
    job = job_config({"policy": "independent", "chunk_frames": 9})
    chunks = encoded(job, pixels(num_frames))
    found, tokenizer = list(reconstructor(job).frames(chunks)), model(job)
    assert [len(block) for block in found] == [chunk.n_frames for chunk in chunks]
    assert sum(map(len, found)) == num_frames
    for block, chunk in zip(found, chunks, strict=True):
        np.testing.assert_array_equal(block, decoded(tokenizer, chunk.codes)[: chunk.n_frames])


@pytest.mark.parametrize("num_frames", [1, 12])
def test_a_whole_clip_is_decoded_at_once(num_frames: int) -> None:
    job = job_config({"policy": "whole"})
    chunks = encoded(job, pixels(num_frames))
    (found,) = reconstructor(job).frames(chunks)
    np.testing.assert_array_equal(found, decoded(model(job), chunks[0].codes)[:num_frames])


@pytest.mark.parametrize("num_frames", [1, 9, 14, 30])
@pytest.mark.parametrize(("chunk_frames", "overlap"), [(9, 1), (9, 0), (13, 2)])
def test_overlapping_chunks_see_the_latent_frames_before_them(
    num_frames: int, chunk_frames: int, overlap: int
) -> None:
    sizes = {"chunk_frames": chunk_frames, "overlap_latents": overlap}
    job = job_config({"policy": "overlap", **sizes})
    chunks = encoded(job, pixels(num_frames))
    found, tokenizer = list(reconstructor(job).frames(chunks)), model(job)
    assert [len(block) for block in found] == [chunk.n_frames for chunk in chunks]
    grid = np.concatenate([chunk.codes for chunk in chunks])
    end = 0
    for block, chunk in zip(found, chunks, strict=True):
        start, end = end, end + len(chunk.codes)
        context = 1 + overlap if start else 0
        shown = decoded(tokenizer, grid[start - context : end])
        skipped = chunk.n_context_frames
        np.testing.assert_array_equal(block, shown[skipped : skipped + chunk.n_frames])


@pytest.mark.parametrize("num_frames", [1, 9, 12, 30])
def test_a_streamed_clip_decodes_as_if_it_were_whole(num_frames: int) -> None:
    job = job_config({"policy": "streaming", "chunk_frames": 9})
    chunks = encoded(job, pixels(num_frames))
    found = np.concatenate(list(reconstructor(job).frames(chunks)))
    whole = decoded(model(job), np.concatenate([chunk.codes for chunk in chunks]))
    # The last frames are padding. Rounding to 8 bits may differ by one.
    assert np.abs(found.astype(int) - whole[:num_frames]).max() <= 1


def test_a_tokenizer_without_decoder_raises() -> None:
    with pytest.raises(ConfigError, match="has no decoder"):
        reconstructor(job_config({}, decoder=None))


def test_other_weights_than_those_that_encoded_are_rejected() -> None:
    job = job_config({})
    spec = TokenizerSpec.of(job.tokenizer, job.chunking, "random, seed 7")
    with pytest.raises(ConfigError, match=r"random, seed 0.* made by random, seed 7"):
        Reconstructor(job, spec, "cpu")
