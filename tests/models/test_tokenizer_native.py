"""Native tokenizers beyond encoding: decoders, patches, pieces, types, every quantizer."""

from __future__ import annotations

from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.adapter_helpers import noise, small_native
from tokpipe.config.native_parts import (
    EMAVQConfig,
    FSQConfig,
    GumbelConfig,
    LFQConfig,
    Movq3DConfig,
    VQConfig,
)
from tokpipe.config.tokenizer import NativeConfig
from tokpipe.errors import ConfigError, WeightsMismatch
from tokpipe.models.blocks import ResnetBlock3D
from tokpipe.models.tokenizers import NOT_FINITE, build_tokenizer
from tokpipe.models.tokenizers.native import NativeTokenizer

FSQ = FSQConfig(kind="fsq", levels=(8, 5, 5))
QUANTIZERS = [
    FSQ,
    LFQConfig(kind="lfq", dim=6),
    LFQConfig(kind="lfq", dim=6, bit_order="little"),
    VQConfig(kind="vq", codebook_size=50, codebook_dim=4),
    EMAVQConfig(kind="ema_vq", codebook_size=50, codebook_dim=4),
    GumbelConfig(kind="gumbel", codebook_size=50, codebook_dim=4, latent_dim=6),
]


def config_of(quantizer: Any = FSQ, **changes: Any) -> NativeConfig:
    decoder = Movq3DConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1)
    return small_native(quantizer, **{"decoder": decoder, **changes})


def built(config: NativeConfig, *, with_decoder: bool = True) -> NativeTokenizer:
    return build_tokenizer(config, None, with_decoder=with_decoder)


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=lambda q: q.kind)
@pytest.mark.parametrize("patch_size", [1, 2])
def test_every_quantizer_encodes_and_decodes(quantizer: Any, patch_size: int) -> None:
    tokenizer = built(config_of(quantizer, patch_size=patch_size))
    pixels = noise(2, 5, 8, 16, 3)
    codes = tokenizer.encode(pixels)
    assert codes.shape == (2, 3, 4 // patch_size, 8 // patch_size)
    assert 0 <= codes.min() <= codes.max() < quantizer.codebook_size
    shown = tokenizer.decode(codes.to(torch.uint16))
    assert shown.shape == pixels.shape
    assert shown.dtype == torch.uint8
    assert shown.unique().numel() > 10


def test_bit_orders_mirror_the_bits_of_the_codes() -> None:
    big, little = (built(config_of(quantizer)) for quantizer in QUANTIZERS[1:3])
    pixels = noise(1, 3, 16, 16, 3)
    codes, mirrored = big.encode(pixels), little.encode(pixels)
    bits = [(codes >> bit & 1) << (5 - bit) for bit in range(6)]
    assert torch.equal(sum(bits[1:], bits[0]), mirrored)
    assert torch.equal(big.decode(codes), little.decode(mirrored))


def test_patches_are_colour_then_row_then_column() -> None:
    tokenizer = built(config_of(patch_size=2))
    x = torch.arange(2 * 3 * 3 * 4 * 8, dtype=torch.float32).view(2, 3, 3, 4, 8)
    patched = tokenizer._patched(x)
    assert patched.shape == (2, 12, 3, 2, 4)
    for colour, row, column in ((0, 0, 0), (1, 0, 1), (2, 1, 0)):
        channel = 4 * colour + 2 * row + column
        assert torch.equal(patched[:, channel], x[:, colour, :, row::2, column::2])
    assert torch.equal(patched[0, :, 1], F.pixel_unshuffle(x[0, :, 1], 2))
    assert torch.equal(tokenizer._unpatched(patched), x)


def test_decoding_is_the_decoder_on_the_code_vectors() -> None:
    tokenizer = built(config_of())
    codes = torch.randint(0, 200, (1, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    assert tokenizer.decoder is not None
    with torch.no_grad():
        floats = tokenizer.decoder(tokenizer.quantizer.vectors_of(codes))
    wanted = ((floats + 1) * 127.5).round().clamp(0, 255).movedim(1, -1)
    assert torch.equal(tokenizer.decode(codes), wanted.to(torch.uint8))


@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_pieces_of_a_clip_have_the_codes_and_pixels_of_the_whole(cuts: list[int]) -> None:
    tokenizer = built(config_of(norm="frame"))
    num_frames = 1 + 2 * (sum(cuts) - 1)
    pixels = noise(1, num_frames, 8, 8, 3)
    codes, shown, first = [], [], 0
    encoder_state = decoder_state = None
    for index, latents in enumerate(cuts):
        frames = 2 * latents - (index == 0)
        piece, encoder_state = tokenizer.encode_piece(
            pixels[:, first : first + frames], encoder_state
        )
        seen, decoder_state = tokenizer.decode_piece(piece, decoder_state)
        codes.append(piece)
        shown.append(seen)
        first += frames
    whole = tokenizer.encode(pixels)
    assert torch.equal(torch.cat(codes, dim=1), whole)
    assert (torch.cat(shown, dim=1).int() - tokenizer.decode(whole).int()).abs().max() <= 1


def test_with_clip_norms_pieces_are_rejected() -> None:
    tokenizer = built(config_of())
    with pytest.raises(ValueError, match=r"piece by piece: .*norm=clip .* over all frames"):
        tokenizer.encode_piece(noise(1, 3, 8, 8, 3), None)
    with pytest.raises(ValueError, match=r"piece by piece: .*norm=clip"):
        tokenizer.decode_piece(torch.zeros(1, 1, 4, 4, dtype=torch.int64), None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_compute_in_applies_to_networks_but_not_the_quantizer(dtype: torch.dtype) -> None:
    tokenizer = built(config_of(QUANTIZERS[3]))
    pixels = noise(1, 3, 16, 16, 3)
    wide = tokenizer.encode(pixels)
    shown = tokenizer.decode(wide)
    tokenizer.compute_in(dtype)
    assert {p.dtype for p in tokenizer.encoder.parameters()} == {dtype, torch.float32}
    assert tokenizer.decoder is not None
    assert {p.dtype for p in tokenizer.decoder.parameters()} == {dtype}
    assert {p.dtype for p in tokenizer.quantizer.parameters()} == {torch.float32}
    assert 0.6 < (tokenizer.encode(pixels) == wide).float().mean() <= 1
    assert (tokenizer.decode(wide).int() - shown.int()).abs().float().mean() < 4


def test_overflow_in_float16_gets_no_code_and_no_pixels() -> None:
    tokenizer = built(config_of())
    assert tokenizer.decoder is not None
    assert isinstance(tokenizer.encoder.mid.block_2, ResnetBlock3D)
    tokenizer.encoder.mid.block_2.conv2.conv.weight.data *= 1e6
    tokenizer.decoder.conv_out.conv.weight.data *= 1e6
    tokenizer.compute_in(torch.float16)
    assert (tokenizer.encode(noise(1, 3, 8, 8, 3)) == NOT_FINITE).any()
    with pytest.raises(ValueError, match=r"decoding gave NaN or infinity in torch.float16"):
        tokenizer.decode(torch.zeros(1, 1, 4, 4, dtype=torch.int64))


@pytest.mark.parametrize(
    ("codes", "problem"),
    [
        (torch.zeros(1, 1, 4, 4), r"codes are torch.float32 of shape"),
        (torch.zeros(1, 4, 4, dtype=torch.int64), r"of shape \(1, 4, 4\)"),
        (torch.zeros(1, 0, 4, 4, dtype=torch.int64), "at least one integer"),
        (torch.full((1, 1, 4, 4), 200), "codes from 200 to 200, but the codebook has 0 to 199"),
        (torch.full((1, 1, 4, 4), -1), "codes from -1 to -1"),
        (torch.zeros(1, 1, 4, 4, dtype=torch.bool), "codes are torch.bool"),
    ],
)
def test_codes_that_do_not_fit_are_rejected(codes: torch.Tensor, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        built(config_of()).decode(codes)


def test_a_decoder_must_be_configured_and_requested() -> None:
    with pytest.raises(ConfigError, match="has no decoder section"):
        build_tokenizer(config_of(decoder=None), None, with_decoder=True)
    with pytest.raises(ValueError, match="built without its decoder"):
        built(config_of(), with_decoder=False).decode(torch.zeros(1, 1, 4, 4, dtype=torch.int64))


def test_decoder_weights_are_optional_and_change_no_code() -> None:
    config = config_of()
    whole = built(config)
    state = whole.state_dict()
    encoding = {key: value for key, value in state.items() if not key.startswith("decoder.")}
    pixels = noise(1, 3, 8, 8, 3)
    for weights in (state, encoding):
        tokenizer = build_tokenizer(config, safetensors.torch.save(weights))
        assert torch.equal(tokenizer.encode(pixels), whole.encode(pixels))
    with pytest.raises(WeightsMismatch, match=r"missing decoder\.conv_in\.conv\.bias"):
        build_tokenizer(config, safetensors.torch.save(encoding), with_decoder=True)
    # Without a decoder in the config its keys are strange ones.
    with pytest.raises(WeightsMismatch, match=r"unexpected decoder\.conv_in\.conv\.bias"):
        build_tokenizer(config_of(decoder=None), safetensors.torch.save(state))
