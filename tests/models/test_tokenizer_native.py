"""Native tokenizers: codes, weights, decoders, patches, pieces, types, every quantizer."""

import itertools
from typing import Any

import av
import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.models.adapter_helpers import file_of, noise, small_native
from tests.pages import REPOSITORY
from tokpipe.config.native_parts import (
    FSQConfig,
    GumbelConfig,
    LFQConfig,
    Movq3DConfig,
    VQConfig,
)
from tokpipe.config.tokenizer import NativeConfig
from tokpipe.errors import ConfigError, WeightsMismatch
from tokpipe.models import FSQ as FSQQuantizer  # noqa: N811
from tokpipe.models import LFQ as LFQQuantizer  # noqa: N811
from tokpipe.models import Quantizer
from tokpipe.models.blocks import ResnetBlock3D
from tokpipe.models.tokenizers import NOT_FINITE, build_tokenizer
from tokpipe.models.tokenizers.base import codes_or_not_finite
from tokpipe.models.tokenizers.native import NativeTokenizer

SAMPLE = REPOSITORY / "examples/data/bigbuckbunny.mp4"
FSQ = FSQConfig(kind="fsq", levels=(8, 5, 5))
LFQ = LFQConfig(kind="lfq", dim=12)
VQ = VQConfig(kind="vq", codebook_size=500, codebook_dim=4)
QUANTIZERS = [
    FSQ,
    LFQConfig(kind="lfq", dim=6),
    LFQConfig(kind="lfq", dim=6, bit_order="little"),
    VQConfig(kind="vq", codebook_size=50, codebook_dim=4),
    VQConfig(kind="ema_vq", codebook_size=50, codebook_dim=4),
    GumbelConfig(kind="gumbel", codebook_size=50, codebook_dim=4, latent_dim=6),
    FSQConfig(kind="fsq", levels=(3, 5), num_codebooks=2),
    FSQConfig(kind="fsq", levels=(8, 5, 5), dim=6),
    LFQConfig(kind="lfq", dim=5, num_bits=4, num_codebooks=3),
    LFQConfig(kind="lfq", dim=5, num_bits=8, bit_order="little"),
    VQConfig(kind="vq", codebook_size=50, codebook_dim=4, remap=(7, 2, 49), unknown_index="extra"),
    VQConfig(kind="ema_vq", codebook_size=50, codebook_dim=4, remap=(7, 2, 49), unknown_index=1),
    GumbelConfig(kind="gumbel", codebook_size=50, codebook_dim=4, latent_dim=6, remap=(9, 0, 8)),
]
"""The last eight with settings that were added later."""


def config_of(quantizer: Any = FSQ, **changes: Any) -> NativeConfig:
    decoder = Movq3DConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1)
    return small_native(quantizer, **{"decoder": decoder, **changes})


def built(config: NativeConfig, *, with_decoder: bool = True) -> NativeTokenizer:
    tokenizer = build_tokenizer(config, None, with_decoder=with_decoder)
    assert isinstance(tokenizer, NativeTokenizer)
    return tokenizer


@pytest.fixture(scope="module")
def real_pixels() -> Tensor:
    """(1, 17, 64, 64, 3): the sample clip, every third frame."""
    with av.open(str(SAMPLE)) as container:
        frames = itertools.islice(container.decode(video=0), 0, 51, 3)
        shown = [frame.reformat(64, 64, format="rgb24").to_ndarray() for frame in frames]
    return torch.from_numpy(np.stack(shown)).unsqueeze(0)


@pytest.mark.parametrize("quantizer", [FSQ, LFQ, VQ], ids=lambda q: q.kind)
def test_encode_gives_the_codes_of_the_normalised_pixels(quantizer: Any) -> None:
    tokenizer = built(small_native(quantizer), with_decoder=False)
    pixels = noise(2, 5, 8, 12, 3)
    codes = tokenizer.encode(pixels)
    assert codes.shape == (2, 3, 4, 6)
    assert codes.dtype == torch.int64
    assert 0 <= codes.min() <= codes.max() < quantizer.num_codes
    x = torch.from_numpy((pixels.numpy().astype(np.float64) / 127.5 - 1).astype(np.float32))
    with torch.no_grad():
        latent = tokenizer.encoder(x.permute(0, 4, 1, 2, 3))
    assert torch.equal(codes, tokenizer.quantizer.codes_of(latent))


@pytest.mark.parametrize("quantizer", [FSQ, LFQ, VQ], ids=lambda q: q.kind)
def test_random_weights_spread_a_video_over_many_codes(quantizer: Any, real_pixels: Tensor) -> None:
    codes = build_tokenizer(small_native(quantizer), None).encode(real_pixels)
    counts = torch.bincount(codes.flatten(), minlength=quantizer.num_codes)
    used = min(quantizer.num_codes, codes.numel())
    assert (counts > 0).sum() > used / 5
    assert counts.max() < codes.numel() / 10


def test_a_latent_that_is_not_finite_gets_no_code() -> None:
    tokenizer = built(small_native(FSQ), with_decoder=False)
    pixels = noise(2, 3, 8, 8, 3)
    wanted = tokenizer.encode(pixels)
    for value in (torch.nan, torch.inf, -torch.inf):

        def spoil(_module: Any, _args: Any, latent: Tensor, value: float = value) -> None:
            latent[1, 2, 0, 3, 1] = value

        handle = tokenizer.encoder.register_forward_hook(spoil)
        found = tokenizer.encode(pixels)
        handle.remove()
        spoiled = torch.zeros_like(wanted, dtype=torch.bool)
        spoiled[1, 0, 3, 1] = True
        assert torch.equal(found, wanted.masked_fill(spoiled, NOT_FINITE))


@pytest.mark.parametrize(
    ("pixels", "problem"),
    [
        (torch.zeros(1, 5, 8, 8, 3), "pixels are torch.float32"),
        (noise(5, 8, 8, 3), r"of shape \(5, 8, 8, 3\)"),
        (noise(1, 3, 5, 8, 8), r"takes uint8 of \(B, T, H, W, 3\)"),
        (noise(1, 4, 8, 8, 3), "frames of a chunk=4 does not fit temporal stride 2: use 3 or 5"),
        (noise(1, 5, 9, 8, 3), "height 9 is not a multiple .* spatial stride 2: use 8 or 10"),
        (noise(1, 5, 8, 9, 3), "width 9 is not a multiple"),
        (noise(1, 0, 8, 8, 3), r"of shape \(1, 0, 8, 8, 3\).* none of them 0"),
        (noise(1, 5, 0, 8, 3), r"of shape \(1, 5, 0, 8, 3\).* none of them 0"),
    ],
)
def test_pixels_that_do_not_fit_are_rejected(pixels: Tensor, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        build_tokenizer(small_native(FSQ), None).encode(pixels)


def test_random_weights_depend_on_seed_and_key_alone() -> None:
    before = torch.get_rng_state()
    first = build_tokenizer(small_native(FSQ), None).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    torch.set_default_dtype(torch.float64)
    try:
        again = build_tokenizer(small_native(FSQ), None).state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert {value.dtype for value in again.values()} == {torch.float32}
    # Another quantizer with as many channels leaves the encoder as it was.
    other = build_tokenizer(small_native(LFQConfig(kind="lfq", dim=3)), None).state_dict()
    assert all(torch.equal(first[key], other[key]) for key in first)
    reseeded = build_tokenizer(small_native(FSQ, seed=1), None).state_dict()
    key = "encoder.conv_in.conv.weight"
    assert not torch.equal(first[key], reseeded[key])
    # From one release of PyTorch to the next as well, or demos would change their codes.
    assert first[key].flatten()[:3].tolist() == pytest.approx(
        [0.11343755, -0.01633306, -0.10927571], abs=1e-8
    )


@pytest.mark.parametrize(
    ("mask", "problem"),
    [
        (None, "missing quantizer.mask"),
        (2 ** torch.arange(12), r"quantizer.mask is \[1, 2, 4.*, not \[2048, "),
    ],
)
def test_keys_of_weights_that_do_not_fit_are_named(mask: Tensor | None, problem: str) -> None:
    config = small_native(LFQ)
    weights = file_of(build_tokenizer(config, None).state_dict(), quantizer__mask=mask)
    with pytest.raises(ConfigError, match=rf"^tokenizer.weights: .*{problem}.*rename"):
        build_tokenizer(config, weights)


@pytest.mark.parametrize("cut", [0, 4, 1000, -1])
def test_a_file_cut_short_is_rejected(cut: int) -> None:
    whole = file_of(build_tokenizer(small_native(FSQ), None).state_dict())
    config = small_native(FSQ, weights="s3://models/a.safetensors")
    with pytest.raises(ConfigError, match=r"^s3://models/a.safetensors is not a complete"):
        build_tokenizer(config, whole[:cut])


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=lambda q: q.kind)
@pytest.mark.parametrize("patch_size", [1, 2])
def test_every_quantizer_encodes_and_decodes(quantizer: Any, patch_size: int) -> None:
    tokenizer = built(config_of(quantizer, patch_size=patch_size))
    pixels = noise(2, 5, 8, 16, 3)
    codes = tokenizer.encode(pixels)
    assert codes.shape[:4] == (2, 3, 4 // patch_size, 8 // patch_size)
    assert codes.shape[4:] == tokenizer.traits.axes
    assert 0 <= codes.min() <= codes.max() < quantizer.num_codes
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


@settings(max_examples=10)
@given(cuts=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_pieces_of_a_clip_have_the_codes_and_pixels_of_the_whole(cuts: list[int]) -> None:
    tokenizer = built(config_of(norm="frame"))
    num_frames = 1 + 2 * (sum(cuts) - 1)
    pixels = noise(1, num_frames, 8, 8, 3)
    codes, shown, first = [], [], 0
    encoder_state = decoder_state = None
    for index, latents in enumerate(cuts):
        frames = 2 * latents - (index == 0)
        cut = pixels[:, first : first + frames]
        piece, encoder_state = tokenizer.encode_piece(cut, encoder_state)
        seen, decoder_state = tokenizer.decode_piece(piece, decoder_state)
        codes.append(piece)
        shown.append(seen)
        first += frames
    whole = tokenizer.encode(pixels)
    assert torch.equal(torch.cat(codes, dim=1), whole)
    assert (torch.cat(shown, dim=1).int() - tokenizer.decode(whole).int()).abs().max() <= 1


def test_with_clip_norms_pieces_are_rejected() -> None:
    tokenizer = built(config_of())
    with pytest.raises(
        ValueError, match=r"piece by piece: .*norm=clip .* codes depend on later frames"
    ):
        tokenizer.encode_piece(noise(1, 3, 8, 8, 3), None)
    with pytest.raises(ValueError, match=r"piece by piece: .*norm=clip"):
        tokenizer.decode_piece(torch.zeros(1, 1, 4, 4, dtype=torch.int64), None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_quantizer_stays_in_float32(dtype: torch.dtype, real_pixels: Tensor) -> None:
    tokenizer = built(config_of(QUANTIZERS[3]))
    pixels = real_pixels[:, :5]
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
    with pytest.raises(ValueError, match=r"decoding produced NaN or infinity in torch.float16"):
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


@pytest.mark.parametrize(
    ("quantizer", "parts"),
    [
        (
            FSQConfig(kind="fsq", levels=(3, 5), num_codebooks=2, dim=6),
            FSQQuantizer((3, 5), dim=6, num_codebooks=2),
        ),
        (
            LFQConfig(kind="lfq", dim=6, num_bits=4, num_codebooks=3, bit_order="little"),
            LFQQuantizer(6, 16, num_codebooks=3, bit_order="little"),
        ),
    ],
    ids=["fsq", "lfq"],
)
def test_a_position_has_a_code_of_each_codebook(quantizer: Any, parts: Quantizer) -> None:
    config = config_of(quantizer)
    tokenizer, pixels = built(config), noise(1, 5, 16, 16, 3)
    parts.load_state_dict(tokenizer.quantizer.state_dict())
    codes = tokenizer.encode(pixels)
    assert codes.shape == (1, 3, 8, 8, quantizer.num_codebooks)
    assert config.traits.codebook_size == parts.codebook_size
    latent = tokenizer.latent_of((pixels / 127.5 - 1).permute(0, 4, 1, 2, 3))
    assert torch.equal(parts.codes_of(latent), codes)
    assert tokenizer.decode(codes).shape == pixels.shape
    broken = latent.clone()
    broken[0, 0, 1, 2, 3] = torch.nan
    found = codes_or_not_finite(tokenizer.quantizer, broken) == NOT_FINITE
    assert found.nonzero()[:, :4].unique(dim=0).tolist() == [[0, 1, 2, 3]]


def test_entries_out_of_use_get_the_code_that_the_job_names() -> None:
    every = VQConfig(kind="vq", codebook_size=50, codebook_dim=4)
    found = {}
    for unknown in (1, "extra"):
        used = every.model_copy(update={"remap": (7, 2, 49), "unknown_index": unknown})
        config = config_of(used)
        assert config.traits.codebook_size == 3 + (unknown == "extra")
        found[unknown] = built(config).encode(noise(1, 5, 16, 16, 3))
    entries = built(config_of(every)).encode(noise(1, 5, 16, 16, 3))
    for code, entry in enumerate((7, 2, 49)):
        assert torch.equal(found["extra"] == code, entries == entry)
    assert torch.equal(found[1], found["extra"].where(found["extra"] < 3, 1))


def test_a_convolution_converts_the_channels_of_the_encoder() -> None:
    encoder = small_native(FSQ).encoder.model_copy(update={"z_channels": 7})
    config = config_of(encoder=encoder, quant_conv=True, norm="frame")
    tokenizer, pixels = built(config), noise(1, 5, 8, 8, 3)
    assert tokenizer.state_dict()["quant_conv.weight"].shape == (3, 7, 1, 1, 1)
    codes = tokenizer.encode(pixels)
    first, state = tokenizer.encode_piece(pixels[:, :3], None)
    second, _ = tokenizer.encode_piece(pixels[:, 3:], state)
    assert torch.equal(torch.cat([first, second], 1), codes)
    with pytest.raises(ValueError, match=r"z_channels=7: make them equal, or set quant_conv"):
        config_of(encoder=encoder)
    again = build_tokenizer(config, file_of(tokenizer.state_dict()))
    again.compute_in(torch.bfloat16)
    assert (again.encode(pixels) == codes).float().mean() > 0.6


def test_sizes_change_without_convolutions_where_the_job_says_so() -> None:
    plain = config_of()
    update = {"resamp_with_conv": False}
    config = plain.model_copy(
        update={
            part: getattr(plain, part).model_copy(update=update) for part in ("encoder", "decoder")
        }
    )
    keys = set(built(plain).state_dict()) - set(built(config).state_dict())
    assert {key.split(".")[0] for key in keys} == {"encoder", "decoder"}
    assert all("sample.conv" in key for key in keys)


@pytest.mark.parametrize(
    ("part", "setting"), [("encoder", "pad_mode"), ("decoder", "add_conv_pad_mode")]
)
def test_weights_need_the_constant_padding_that_they_were_trained_with(
    part: str, setting: str
) -> None:
    plain = config_of()
    for mode in ("constant", "constant_causal", "constant_published"):
        update = {setting: mode, **({"add_conv": True} if part == "decoder" else {})}
        changed = getattr(plain, part).model_copy(update=update)
        config = plain.model_copy(update={part: changed})
        weights = file_of(built(config).state_dict())  # random ones need no choice
        if mode == "constant":
            with pytest.raises(ConfigError, match=rf"{part}\..* has pad_mode='constant'"):
                build_tokenizer(config, weights, with_decoder=True)
        else:
            build_tokenizer(config, weights, with_decoder=True)
        if part == "decoder":
            build_tokenizer(config, weights)  # without the decoder there is nothing to choose


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
        assert not tokenizer.training
        assert not any(parameter.requires_grad for parameter in tokenizer.parameters())
    with pytest.raises(WeightsMismatch, match=r"missing decoder\.conv_in\.conv\.bias"):
        build_tokenizer(config, safetensors.torch.save(encoding), with_decoder=True)
    # Without a decoder in the config its keys are unexpected.
    with pytest.raises(WeightsMismatch, match=r"unexpected decoder\.conv_in\.conv\.bias"):
        build_tokenizer(config_of(decoder=None), safetensors.torch.save(state))
