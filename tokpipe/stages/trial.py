"""Tries a job's tokenizer before any cluster is involved."""

import torch

from tokpipe.config.job import ChunkingConfig, EncodeConfig
from tokpipe.config.tokenizer import CustomConfig, TokenizerConfig
from tokpipe.models.tokenizers.probe import probe
from tokpipe.stages.encode import EncodeStage


def try_tokenizer(
    tokenizer: TokenizerConfig,
    chunking: ChunkingConfig,
    encode: EncodeConfig,
    weights: bytes | None,
) -> str:
    """Build a tokenizer as an encoder would, encode small clips of noise, and check the codes.

    Without a GPU, a job for GPUs is tried on the CPU in float32, like every device before its
    first clip. Returns the device it was tried on: ``cuda`` or ``cpu``.
    """
    device = "cuda" if encode.device != "cpu" and torch.cuda.is_available() else "cpu"
    is_stand_in = device == "cpu" and encode.device == "cuda"
    dtype = getattr(torch, encode.dtype)
    if is_stand_in:
        encode = encode.model_copy(update={"dtype": "float32"})
    stage = EncodeStage(tokenizer, chunking, encode)
    stage.setup(device, weights)
    if not isinstance(tokenizer, CustomConfig):  # those are probed whenever they are built
        name = f"tokenizer {tokenizer.name}"
        probe(stage.tokenizer, name, with_decoder=False, device=stage.device)
    if is_stand_in:
        stage.tokenizer.compute_in(dtype)
    return device
