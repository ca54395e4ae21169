"""Tokenizers by import path: what they do is compared with what they declare."""

import sys
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.models import custom_tokenizers
from tests.models.adapter_helpers import noise
from tokpipe.config.tokenizer import CustomConfig
from tokpipe.config.traits import TokenizerTraits
from tokpipe.errors import ConfigError, WeightsMismatch
from tokpipe.models.tokenizers import build_tokenizer

HERE = "tests.models.custom_tokenizers"


def config_of(name: str, *, traits: dict[str, Any] | None = None, **changes: Any) -> CustomConfig:
    declared: dict[str, Any] = {"temporal_stride": 2, "spatial_stride": 4, "codebook_size": 16}
    declared |= {"value_range": (0.0, 1.0), **(traits or {})}
    return CustomConfig(
        kind="custom",
        implementation=name if ":" in name else f"{HERE}:{name}",
        declares=TokenizerTraits(**declared),
        **changes,
    )


def test_a_class_is_built_with_its_arguments_and_encodes_and_decodes() -> None:
    tokenizer = build_tokenizer(config_of("Blocks"), None, with_decoder=True)
    pixels = noise(2, 5, 8, 12, 3)
    codes = tokenizer.encode(pixels)
    assert codes.shape == (2, 3, 2, 3)
    assert tokenizer.decode(codes).shape == pixels.shape
    dark = build_tokenizer(config_of("Blocks", arguments={"scale": 0.1}), None)
    assert dark.encode(pixels).max() < codes.min()


@pytest.mark.parametrize(
    ("layout", "value_range", "wanted"),
    [
        ("BCTHW", (0.0, 1.0), (2, 3, 3, 8, 12)),
        ("BTCHW", (-0.5, 0.5), (2, 3, 3, 8, 12)),
        ("BCHW", (-1.0, 1.0), (6, 3, 8, 12)),
    ],
)
def test_pixels_arrive_in_the_declared_layout_and_range(
    layout: str, value_range: tuple[float, float], wanted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def encode(self: Any, x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        images = (len(x),) if layout == "BCHW" else (2, 3)
        return torch.zeros((*images, x.shape[-2] // 4, x.shape[-1] // 4), dtype=torch.int32)

    traits = {"layout": layout, "value_range": value_range, "temporal_stride": 1}
    tokenizer = build_tokenizer(config_of("Blocks", traits={"temporal_stride": 2}), None)
    tokenizer.traits = TokenizerTraits(spatial_stride=4, codebook_size=16, **traits)  # type: ignore[arg-type]
    monkeypatch.setattr(custom_tokenizers.Blocks, "encode", encode)
    pixels = noise(2, 3, 8, 12, 3)
    assert tokenizer.encode(pixels).shape == (2, 3, 2, 3)
    (x,) = seen
    assert x.shape == wanted
    low, high = value_range
    frame = {"BCTHW": lambda: x[1, :, 2], "BTCHW": lambda: x[1, 2], "BCHW": lambda: x[5]}[layout]()
    expected = pixels[1, 2].permute(2, 0, 1).double() / 255 * (high - low) + low
    torch.testing.assert_close(frame.double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("nowhere.at_all:Thing", "nowhere.at_all cannot be imported: ModuleNotFoundError"),
        ("Missing", "Missing in .* is not a class"),
        (
            "not_a_class",
            "not_a_class in .* is not a class, but must be a subclass",
        ),
        ("NotAModule", "is <class .*NotAModule'>, but must be a subclass"),
        ("subprocess:Popen", "is <class 'subprocess.Popen'>, but must be a subclass"),
        ("WithoutEncode", r"with a method encode\(x\)"),
        ("Flat", r"returned torch.int64 of shape \(288,\), not integers of \(2, 2, 8, 9\)"),
        ("Transposed", r"returned torch.int64 of shape \(2, 2, 9, 8\), not integers"),
        ("Floats", "returned torch.float32 of shape"),
        ("FromOne", r"codes from \d+ to \d+, but the codebook has 0 to 15"),
        ("Samples", "raised TypeError: different codes the second time"),
        ("MixesClips", "raised TypeError: different codes for the second clip than alone"),
        ("Raises", "raised KeyError: 'no such layer'"),
    ],
)
def test_a_class_that_breaks_its_declaration_is_rejected(name: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)^tokenizer.implementation \S*{name}.*{problem}"):
        build_tokenizer(config_of(name), None)
    assert custom_tokenizers.built == []


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("WithoutDecode", "raised TypeError: 'NoneType' object is not callable"),
        ("DecodesSmall", r"returned torch.float32 of shape .*not floats of \(2, 3, 3, 32, 36\)"),
        ("DecodesNaN", "decoding produced NaN or infinity"),
    ],
)
def test_a_decoder_is_probed_where_one_is_needed(name: str, problem: str) -> None:
    assert build_tokenizer(config_of(name), None).traits.codebook_size == 16
    with pytest.raises(ConfigError, match=problem):
        build_tokenizer(config_of(name), None, with_decoder=True)


def test_pieces_are_compared_with_the_whole() -> None:
    streamable = {"why_not_streamable": None}
    with pytest.raises(ConfigError, match="has no attribute 'encode_piece'"):
        build_tokenizer(config_of("Blocks", traits=streamable), None)
    with pytest.raises(
        ConfigError, match="in pieces, raised TypeError: different codes than whole"
    ):
        build_tokenizer(config_of("StreamsBadly", traits=streamable), None)
    tokenizer = build_tokenizer(config_of("Streams", traits=streamable), None)
    pixels = noise(1, 7, 8, 8, 3)
    head, state = tokenizer.encode_piece(pixels[:, :3], None)
    tail, state = tokenizer.encode_piece(pixels[:, 3:], state)
    assert torch.equal(torch.cat([head, tail], dim=1), tokenizer.encode(pixels))
    other = type(state)("Encoder3D of 5 parameters", state.tensors)
    with pytest.raises(ValueError, match="the state was made by Encoder3D"):
        tokenizer.encode_piece(pixels[:, 3:], other)
    with pytest.raises(ValueError, match="a later piece of 3 frames"):
        tokenizer.encode_piece(pixels[:, :3], state)


def test_arguments_and_weights_that_do_not_fit_are_named() -> None:
    with pytest.raises(ConfigError, match=r"arguments \{'sclae': 2\}: TypeError: .*sclae"):
        build_tokenizer(config_of("Blocks", arguments={"sclae": 2}), None)
    config = config_of("Blocks", weights="s3://models/blocks.safetensors")
    with pytest.raises(ConfigError, match=r"names s3://models/blocks.safetensors, but its bytes"):
        build_tokenizer(config, None)
    right = {"scale": torch.tensor([0.1]), "codebook": torch.zeros(16)}
    tokenizer = build_tokenizer(config, safetensors.torch.save(right))
    assert tokenizer.encode(noise(1, 1, 8, 8, 3)).max() <= 1
    wrong = safetensors.torch.save({"scale": torch.zeros(2), "other": torch.zeros(1)})
    problem = r"missing codebook; unexpected other; scale is \(2,\), not \(1,\)"
    with pytest.raises(WeightsMismatch, match=problem):
        build_tokenizer(config, wrong)


def test_another_dtype_needs_compute_in() -> None:
    tokenizer = build_tokenizer(config_of("Blocks"), None)
    tokenizer.compute_in(torch.float32)
    problem = r"^encode.dtype: \S+Blocks has no method compute_in\(dtype\)"
    with pytest.raises(ConfigError, match=problem):
        tokenizer.compute_in(torch.bfloat16)
    narrow = build_tokenizer(config_of("Narrow"), None)
    narrow.compute_in(torch.bfloat16)
    assert narrow.encode(noise(1, 1, 8, 8, 3)).shape == (1, 1, 2, 2)


def test_the_probe_uses_the_declared_size_and_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    encode = custom_tokenizers.Blocks.encode

    def watched(self: Any, x: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(x.shape))
        return encode(self, x)

    monkeypatch.setattr(custom_tokenizers.Blocks, "encode", watched)
    build_tokenizer(config_of("Blocks", probe_size=(16, 8)), None)
    assert seen[0] == (2, 3, 3, 16, 8)
    seen.clear()
    build_tokenizer(config_of("Blocks", traits={"chunk_frames": 9, "square_only": True}), None)
    assert seen[0] == (2, 3, 9, 32, 32)


def test_a_config_imports_nothing() -> None:
    config_of("antigravity:Nothing")
    assert "antigravity" not in sys.modules
