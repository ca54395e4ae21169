"""A picture through tokenizers that group frames, against their authors' rule for pictures."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.models.adapter_helpers import file_of, randomize
from tokpipe.config.job import ChunkingConfig, EncodeConfig
from tokpipe.config.tokenizer import Emu3Config
from tokpipe.stages.encode import EncodeStage
from tokpipe.types import ClipRef, DecodedClip, EncodedClip

transformers = pytest.importorskip("transformers", reason="the emu3 extra is not installed")

SMALL: dict[str, Any] = {"base_channels": 32, "num_res_blocks": 1, "codebook_size": 300}
SMALL["channel_multiplier"] = (1, 1, 1, 2)


def test_a_picture_gets_the_codes_of_four_equal_frames() -> None:
    reference = transformers.Emu3VQVAE(transformers.Emu3VQVAEConfig(**SMALL, hidden_size=64))
    randomize(reference)
    reference.eval()
    config = Emu3Config(kind="emu3", weights="s3://models/emu3.safetensors", **SMALL)
    stage = EncodeStage(config, ChunkingConfig(chunk_frames=4), EncodeConfig())
    stage.setup("cpu", file_of(reference.state_dict()))
    picture = np.random.default_rng(0).integers(0, 256, (1, 16, 24, 3), dtype=np.uint8)
    ref = ClipRef("clip", 0, 0, 1, "s3://raw/a.jpg")
    clip = DecodedClip(ref, picture, np.zeros(1), 8.0, "pillow", marks=("picture",))
    (found,) = stage.process([clip])
    assert isinstance(found, EncodedClip)
    (span,), (codes,) = found.chunks, found.codes
    assert (span.num_frames, span.num_pad_frames, span.num_context_frames) == (1, 3, 0)
    # Four dimensions are pictures to transformers, which repeats them.
    pixels = torch.from_numpy(picture).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.inference_mode():
        (wanted,) = reference.encode(pixels, image_sizes=torch.tensor([[16, 24]])).image_tokens
    assert len(np.unique(codes)) > 1
    assert np.array_equal(codes.reshape(2, 3), wanted.reshape(2, 3).numpy())
