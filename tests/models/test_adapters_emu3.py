"""Emu3's tokenizer on random weights, against transformers' own code, in both published layouts."""

import re
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.adapter_helpers import file_of, noise, randomize
from tokpipe.config.tokenizer import Emu3Config
from tokpipe.errors import ConfigError, WeightsMismatch
from tokpipe.models.tokenizers import VideoTokenizer, build_tokenizer
from tokpipe.models.tokenizers.vqgan import Emu3Tokenizer

transformers = pytest.importorskip("transformers", reason="the emu3 extra is not installed")

SMALL: dict[str, Any] = {"base_channels": 32, "num_res_blocks": 1, "codebook_size": 300}
SMALL["channel_multiplier"] = (1, 1, 1, 2)
CONFIG = Emu3Config(kind="emu3", weights="s3://models/emu3.safetensors", **SMALL)


@pytest.fixture(scope="module")
def reference() -> Any:
    config = transformers.Emu3VQVAEConfig(**SMALL, hidden_size=64)
    model = transformers.Emu3VQVAE(config)
    randomize(model)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.get_buffer("running_mean").uniform_(-0.2, 0.2)
            module.get_buffer("running_var").uniform_(0.5, 2)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tokenizer(reference: Any) -> VideoTokenizer:
    return build_tokenizer(CONFIG, file_of(reference.state_dict()), with_decoder=True)


def in_baai_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The keys and shapes of BAAI/Emu3-VisionTokenizer, as its modules are named."""
    renamed = {}
    for key, value in state.items():
        new = re.sub(r"^encoder\.down_block\.", "encoder.", key)
        new = re.sub(r"^decoder\.up_block\.", "decoder.", new)
        new = new.replace(".middle_block.attn_norm.", ".mid.attn_1.norm.")
        new = new.replace(".middle_block.", ".mid.")
        new = re.sub(r"\.attn_norms\.(\d+)\.", r".attn.\1.norm.", new)
        match = re.search(r"\.(q|k|v|out)_proj\.(weight|bias)$", new)
        if match:
            name = "proj_out" if match[1] == "out" else match[1]
            new = f"{new[: match.start()]}.{name}.{match[2]}"
            value = value[..., None, None] if match[2] == "weight" else value
        renamed[new] = value
    return renamed


def test_the_defaults_are_the_published_settings() -> None:
    config = Emu3Config(kind="emu3", weights="s3://models/emu3.safetensors")
    published = transformers.Emu3VQVAEConfig()
    for name in ("codebook_size", "embed_dim", "base_channels", "num_res_blocks"):
        assert getattr(config, name) == getattr(published, name), name
    assert config.channel_multiplier == tuple(published.channel_multiplier)
    assert config.attn_resolutions == tuple(published.attn_resolutions)
    assert config.embed_dim == published.latent_channels
    assert config.base_channels * config.channel_multiplier[-1] == published.hidden_size
    assert config.traits.temporal_stride == published.temporal_downsample_factor


def test_frames_get_the_codes_of_transformers(reference: Any, tokenizer: VideoTokenizer) -> None:
    pixels = noise(3, 4, 16, 24, 3)
    codes = tokenizer.encode(pixels)
    assert codes.shape == (3, 1, 2, 3)
    assert codes.unique().numel() > 3
    x = (pixels / 127.5 - 1).permute(0, 1, 4, 2, 3)
    found = reference.encode(x, image_sizes=torch.tensor([[16, 24]] * 3)).image_tokens
    assert torch.equal(codes, torch.stack(list(found)))


def test_codes_get_the_pixels_of_transformers(reference: Any, tokenizer: VideoTokenizer) -> None:
    codes = torch.randint(0, 300, (2, 1, 2, 3), generator=torch.Generator().manual_seed(1))
    pixels = tokenizer.decode(codes)
    assert pixels.shape == (2, 4, 16, 24, 3)
    video = reference.decode(codes).permute(0, 1, 3, 4, 2)
    wanted = ((video + 1) * 127.5).round().clamp(0, 255)
    assert (pixels - wanted).abs().max() <= 1


def test_chunks_have_four_frames(tokenizer: VideoTokenizer) -> None:
    for frames in (1, 3, 5, 8, 12):
        with pytest.raises(ValueError, match=rf"={frames}, but this tokenizer encodes 4 frames"):
            tokenizer.encode(noise(1, frames, 16, 16, 3))
    with pytest.raises(ValueError, match="every four frames separately"):
        tokenizer.encode_piece(noise(1, 4, 16, 16, 3), None)
    with pytest.raises(ValueError, match="=8, but this tokenizer encodes 4 frames"):
        tokenizer.decode(torch.zeros(1, 2, 2, 2, dtype=torch.int64))


def test_both_published_layouts_load(reference: Any, tokenizer: VideoTokenizer) -> None:
    published = in_baai_layout(reference.state_dict())
    for key, shape in {
        "encoder.down.3.attn.0.q.weight": (64, 64, 1, 1),
        "encoder.down.3.attn.0.norm.weight": (64,),
        "encoder.mid.attn_1.proj_out.bias": (64,),
        "encoder.mid.attn_1.norm.bias": (64,),
        "encoder.time_conv.1.conv.conv.weight": (4, 4, 4, 3, 3),
        "encoder.time_res_stack.0.norm1.running_mean": (4,),
        "decoder.up.3.attn.1.norm.conv_y.weight": (64, 4, 1, 1),
        "quant_conv.conv.weight": (4, 4, 3, 1, 1),
    }.items():
        assert published[key].shape == shape, key
    assert Emu3Tokenizer.renamed(published).keys() == reference.state_dict().keys()
    loaded = build_tokenizer(CONFIG, file_of(published), with_decoder=True)
    pixels = noise(1, 4, 16, 16, 3)
    codes = tokenizer.encode(pixels)
    assert torch.equal(loaded.encode(pixels), codes)
    assert torch.equal(loaded.decode(codes), tokenizer.decode(codes))


def test_keys_that_do_not_fit_are_named(reference: Any) -> None:
    weights = file_of(reference.state_dict(), lm_head__weight=torch.zeros(1))
    with pytest.raises(WeightsMismatch, match=r"emu3.safetensors: .*unexpected lm_head.weight"):
        build_tokenizer(CONFIG, weights)
    weights = file_of({f"model.vqmodel.{k}": v for k, v in reference.state_dict().items()})
    with pytest.raises(WeightsMismatch, match=r"unexpected model\.vqmodel\."):
        build_tokenizer(CONFIG, weights, with_decoder=True)


def test_without_transformers_the_error_says_what_to_install(
    reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"needs the package transformers.*tokpipe\[emu3\]"):
        build_tokenizer(CONFIG, file_of(reference.state_dict()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_leave_the_codebook_in_float32(reference: Any, dtype: torch.dtype) -> None:
    tokenizer = build_tokenizer(CONFIG, file_of(reference.state_dict()), with_decoder=True)
    pixels = noise(2, 4, 32, 32, 3)
    wide = tokenizer.encode(pixels)
    tokenizer.compute_in(dtype)
    assert 0.4 < (tokenizer.encode(pixels) == wide).float().mean() <= 1.0
    assert tokenizer.decode(wide).shape == pixels.shape
    assert tokenizer.state_dict()["quantize.embedding.weight"].dtype == torch.float32
