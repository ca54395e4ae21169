from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from tests.models.adapter_helpers import noise, small_native
from tokpipe.config.native_parts import Encoder3DConfig, FSQConfig, LFQConfig, VQConfig
from tokpipe.config.tokenizer import NativeConfig
from tokpipe.errors import ConfigError
from tokpipe.models.tokenizers import NOT_FINITE, build_tokenizer

SAMPLE = Path(__file__).parent.parent.parent / "examples" / "data" / "bigbuckbunny.mp4"

FSQ = FSQConfig(kind="fsq", levels=(8, 5, 5))
LFQ = LFQConfig(kind="lfq", dim=12)
VQ = VQConfig(kind="vq", codebook_size=500, codebook_dim=4)


def weights_of(config: NativeConfig, **changes: Tensor | None) -> dict[str, Tensor]:
    """Valid weights for ``config``, with some keys changed or, with None, dropped."""
    state: dict[str, Tensor | None] = {**build_tokenizer(config, None).state_dict(), **changes}
    return {key: value for key, value in state.items() if value is not None}


@pytest.fixture(scope="module")
def real_pixels() -> Tensor:
    """(1, 17, 64, 64, 3): the sample clip, every third frame."""
    with av.open(str(SAMPLE)) as container:
        frames = [
            frame.reformat(width=64, height=64, format="rgb24").to_ndarray()
            for index, frame in enumerate(container.decode(video=0))
            if index % 3 == 0 and index < 51
        ]
    return torch.from_numpy(np.stack(frames)).unsqueeze(0)


@pytest.mark.parametrize("quantizer", [FSQ, LFQ, VQ], ids=lambda q: q.kind)
def test_encode_gives_the_codes_of_the_normalised_pixels(quantizer: Any) -> None:
    tokenizer = build_tokenizer(small_native(quantizer), None)
    pixels = noise(2, 5, 8, 12, 3)
    codes = tokenizer.encode(pixels)
    assert codes.shape == (2, 3, 4, 6)
    assert codes.dtype == torch.int64
    assert 0 <= codes.min() <= codes.max() < quantizer.codebook_size
    x = torch.from_numpy((pixels.numpy().astype(np.float64) / 127.5 - 1).astype(np.float32))
    with torch.no_grad():
        latent = tokenizer.encoder(x.permute(0, 4, 1, 2, 3))
    assert torch.equal(codes, tokenizer.quantizer.codes_of(latent))


@pytest.mark.parametrize("quantizer", [FSQ, LFQ, VQ], ids=lambda q: q.kind)
def test_random_weights_spread_a_real_video_over_many_codes(
    quantizer: Any, real_pixels: Tensor
) -> None:
    codes = build_tokenizer(small_native(quantizer), None).encode(real_pixels)
    counts = torch.bincount(codes.flatten(), minlength=quantizer.codebook_size)
    used = min(quantizer.codebook_size, codes.numel())
    assert (counts > 0).sum() > used / 5
    assert counts.max() < codes.numel() / 10


def test_bfloat16_changes_few_codes_of_a_real_video(real_pixels: Tensor) -> None:
    tokenizer = build_tokenizer(small_native(FSQ), None)
    wide = tokenizer.encode(real_pixels)
    tokenizer.compute_in(torch.bfloat16)
    agreement = (wide == tokenizer.encode(real_pixels)).float().mean()
    assert 0.8 < agreement < 1.0


def test_a_latent_that_is_not_finite_gets_no_code() -> None:
    tokenizer = build_tokenizer(small_native(FSQ), None)
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
        (noise(1, 0, 8, 8, 3), r"of shape \(1, 0, 8, 8, 3\): the clip is empty"),
        (noise(1, 5, 0, 8, 3), r"of shape \(1, 5, 0, 8, 3\): the clip is empty"),
    ],
)
def test_pixels_that_do_not_fit_are_rejected(pixels: Tensor, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        build_tokenizer(small_native(FSQ), None).encode(pixels)


def test_random_weights_depend_on_seed_and_key_alone() -> None:
    torch.manual_seed(1)
    first = build_tokenizer(small_native(FSQ), None).state_dict()
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


def test_building_does_not_change_the_global_random_state() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    build_tokenizer(small_native(VQ), None)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("quantizer", [FSQ, LFQ, VQ], ids=lambda q: q.kind)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_load_from_safetensors_in_any_float_dtype(
    quantizer: Any, dtype: torch.dtype
) -> None:
    config = small_native(quantizer, seed=5)
    given = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in weights_of(config).items()
    }
    loaded = build_tokenizer(small_native(quantizer), safetensors.torch.save(given))
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, given[key].to(value.dtype)), key
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


KEY = "encoder.mid.block_1.conv1.conv.bias"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({KEY: None}, f"missing {KEY}"),
        ({"quantizer.mask": None}, "missing quantizer.mask"),
        ({"quantizer.mask": 2 ** torch.arange(12)}, r"quantizer.mask is \[1, 2, 4.*, not \[2048, "),
    ],
)
def test_keys_of_weights_that_do_not_fit_are_named(
    changes: dict[str, Tensor | None], problem: str
) -> None:
    config = small_native(LFQ)
    weights = safetensors.torch.save(weights_of(config, **changes))
    with pytest.raises(ConfigError, match=rf"^tokenizer.weights: .*{problem}.*rename"):
        build_tokenizer(config, weights)


@pytest.mark.parametrize("cut", [0, 4, 1000, -1])
def test_a_file_cut_short_is_rejected(cut: int) -> None:
    whole = safetensors.torch.save(weights_of(small_native(FSQ)))
    config = small_native(FSQ, weights="s3://models/a.safetensors")
    with pytest.raises(ConfigError, match=r"^s3://models/a.safetensors is not a complete"):
        build_tokenizer(config, whole[:cut])


def test_named_weights_are_never_replaced_by_random_ones() -> None:
    with pytest.raises(ConfigError, match=r"names s3://models/a.safetensors, but its bytes"):
        build_tokenizer(small_native(FSQ, weights="s3://models/a.safetensors"), None)


def test_config_and_model_agree_on_strides_and_codebook_size() -> None:
    for compress in (1, 2, 4):
        encoder = Encoder3DConfig(
            ch=32, ch_mult=(1, 1, 1), z_channels=3, temporal_compress_times=compress
        )
        config = NativeConfig(encoder=encoder, quantizer=FSQ)
        tokenizer, traits = build_tokenizer(config, None), config.traits
        assert tokenizer.encoder.temporal_stride == traits.temporal_stride == compress
        assert tokenizer.encoder.spatial_stride == traits.spatial_stride == 4
        assert tokenizer.quantizer.codebook_size == traits.codebook_size
