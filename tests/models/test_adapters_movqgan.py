"""SBER-MoVQGAN on random weights in its published layout."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.adapter_helpers import file_of, noise, randomize
from tokpipe.config.tokenizer import VQGANConfig
from tokpipe.errors import WeightsMismatch
from tokpipe.models.tokenizers import NOT_FINITE, VideoTokenizer, build_tokenizer
from tokpipe.models.tokenizers.vqgan import VQGANTokenizer

SMALL: dict[str, Any] = {"ch": 32, "num_res_blocks": 1, "codebook_size": 300}
CONFIG = VQGANConfig(kind="movqgan", weights="s3://m", ch_mult=(1, 1, 2, 2), **SMALL)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    model = VQGANTokenizer(CONFIG, with_decoder=True)
    randomize(model)
    return dict(model.state_dict())


@pytest.fixture(scope="module")
def tokenizer(state: dict[str, Tensor]) -> VideoTokenizer:
    return build_tokenizer(CONFIG, file_of(state), with_decoder=True)


@pytest.mark.parametrize(
    ("settings", "millions"),
    [({"ch": 128}, 67.8), ({"ch": 128, "num_res_blocks": 4}, 101.6), ({}, 270.7)],
    ids=["67M", "102M", "270M"],
)
def test_the_published_sizes_have_as_many_parameters_as_their_names_say(
    settings: dict[str, int], millions: float
) -> None:
    config = VQGANConfig.model_validate({**settings, "kind": "movqgan", "weights": "s3://m"})
    with torch.device("meta"):
        model = VQGANTokenizer(config, with_decoder=True)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
    assert config.traits.codebook_size == 16_384
    assert config.traits.code_dtype == "uint16"
    # Keys of movqgan_270M.ckpt, one of every kind.
    assert {
        "encoder.conv_in.weight", "encoder.down.0.block.0.norm1.weight",
        "encoder.down.1.block.0.nin_shortcut.weight" if "ch" not in settings else
        "encoder.down.1.block.0.conv1.weight",
        "encoder.down.0.downsample.conv.bias", "encoder.down.3.attn.1.proj_out.weight",
        "encoder.mid.attn_1.norm.bias", "encoder.norm_out.weight", "encoder.conv_out.bias",
        "quant_conv.weight", "quantize.embedding.weight", "post_quant_conv.bias",
        "decoder.mid.block_1.norm1.norm_layer.weight", "decoder.mid.attn_1.norm.conv_y.weight",
        "decoder.up.3.attn.2.q.weight", "decoder.up.1.upsample.conv.weight",
        "decoder.up.0.block.0.norm2.conv_b.bias", "decoder.norm_out.conv_y.bias",
        "decoder.conv_out.weight",
    } <= model.state_dict().keys()  # fmt: skip


def test_every_frame_is_encoded_alone_as_published(tokenizer: Any) -> None:
    pixels = noise(2, 3, 16, 24, 3)
    codes = tokenizer.encode(pixels)
    assert codes.shape == (2, 3, 2, 3)
    assert codes.unique().numel() > 4
    frame = pixels[1, 2].permute(2, 0, 1).unsqueeze(0) / 127.5 - 1
    with torch.no_grad():
        latent = tokenizer.quant_conv(tokenizer.encoder(frame))[0].flatten(1).T
    wanted = torch.cdist(latent, tokenizer.quantize.embedding.weight).argmin(1)
    assert torch.equal(codes[1, 2].flatten(), wanted)


def test_decoding_is_the_decoder_on_the_code_vectors(tokenizer: Any) -> None:
    codes = torch.randint(0, 300, (2, 3, 2, 3), generator=torch.Generator().manual_seed(1))
    pixels = tokenizer.decode(codes)
    assert pixels.shape == (2, 3, 16, 24, 3)
    assert pixels.dtype == torch.uint8
    with torch.no_grad():
        vectors = tokenizer.quantize.embedding(codes[1, 2]).permute(2, 0, 1).unsqueeze(0)
        frame = tokenizer.decoder(tokenizer.post_quant_conv(vectors), vectors)[0]
    wanted = ((frame + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 0)
    assert (pixels[1, 2] - wanted).abs().max() <= 1
    assert torch.equal(tokenizer.decode(codes.to(torch.uint16)), pixels)


def test_pieces_of_a_clip_have_the_codes_of_the_whole(tokenizer: VideoTokenizer) -> None:
    pixels = noise(1, 5, 16, 16, 3)
    head, state = tokenizer.encode_piece(pixels[:, :2], None)
    tail, _ = tokenizer.encode_piece(pixels[:, 2:], state)
    whole = tokenizer.encode(pixels)
    assert torch.equal(torch.cat([head, tail], dim=1), whole)
    first, state = tokenizer.decode_piece(head, None)
    rest, _ = tokenizer.decode_piece(tail, state)
    assert torch.equal(torch.cat([first, rest], dim=1), tokenizer.decode(whole))


def test_encoding_needs_no_decoder(state: dict[str, Tensor], tokenizer: VideoTokenizer) -> None:
    decoding = ("decoder.", "post_quant_conv.")
    encoding = {key: value for key, value in state.items() if not key.startswith(decoding)}
    pixels = noise(1, 1, 16, 16, 3)
    for weights in (file_of(encoding), file_of(state)):
        encoder = build_tokenizer(CONFIG, weights)
        assert torch.equal(encoder.encode(pixels), tokenizer.encode(pixels))
        assert not any("decoder" in key for key in encoder.state_dict())
        with pytest.raises(ValueError, match="built without its decoder"):
            encoder.decode(torch.zeros(1, 1, 2, 2, dtype=torch.int64))
    with pytest.raises(WeightsMismatch, match=r"missing decoder\.conv_in\.bias"):
        build_tokenizer(CONFIG, file_of(encoding), with_decoder=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_change_few_codes(state: dict[str, Tensor], dtype: torch.dtype) -> None:
    tokenizer: Any = build_tokenizer(CONFIG, file_of(state), with_decoder=True)
    pixels = noise(1, 2, 32, 32, 3)
    wide = tokenizer.encode(pixels)
    shown = tokenizer.decode(wide)
    tokenizer.compute_in(dtype)
    assert 0.5 < (tokenizer.encode(pixels) == wide).float().mean() <= 1.0
    assert (tokenizer.decode(wide).int() - shown.int()).abs().float().mean() < 4
    assert tokenizer.quantize.embedding.weight.dtype == torch.float32


def test_a_latent_that_is_not_finite_gets_no_code(state: dict[str, Tensor]) -> None:
    tokenizer: Any = build_tokenizer(CONFIG, file_of(state))
    tokenizer.encoder.conv_out.weight.data[0] = torch.inf
    assert (tokenizer.encode(noise(1, 1, 16, 16, 3)) == NOT_FINITE).all()
