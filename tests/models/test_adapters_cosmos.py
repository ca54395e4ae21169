"""Cosmos DV and DI: TorchScript programs with the published interface and random weights."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.adapter_helpers import noise
from tokpipe.config.tokenizer import CosmosDIConfig, CosmosDVConfig
from tokpipe.errors import ConfigError
from tokpipe.models.tokenizers import VideoTokenizer, build_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

CONFIG = CosmosDVConfig(
    kind="cosmos_dv",
    variant="4x8x8",
    weights="s3://models/encoder.jit",
    decoder_weights="s3://models/decoder.jit",
)


class Encoder(nn.Module):
    """(B, 3, T, H, W) -> (indices int32, code vectors, loss), like ``encoder.jit``."""

    def __init__(self, time: int = 4, space: int = 8) -> None:
        super().__init__()
        self.time, self.space = time, space
        self.conv = nn.Conv3d(3, 6, 1)
        nn.init.normal_(self.conv.weight, std=3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first, rest = x[:, :, :1], x[:, :, 1:]
        if rest.shape[2] > 0:
            rest = rest.unflatten(2, [-1, self.time]).mean(3)
        z = self.conv(torch.cat([first, rest], 2))
        z = z.unflatten(4, [-1, self.space]).unflatten(3, [-1, self.space]).mean([4, 6])
        levels = torch.tensor([8, 8, 8, 5, 5, 5])
        digits = (torch.sigmoid(z.movedim(1, -1)) * levels).floor().long()
        digits = torch.minimum(digits, levels - 1)
        basis = torch.tensor([1, 8, 64, 512, 2560, 12800])
        return (digits * basis).sum(-1).int(), z, z.mean()


class Decoder(nn.Module):
    """indices (B, t, h, w) -> (B, 3, T, H, W), like ``decoder.jit``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 3, 1)

    def forward(self, indices: Tensor) -> Tensor:
        x = (indices.to(self.conv.weight.dtype) / 32000 - 1).unsqueeze(1)
        x = x.repeat_interleave(8, 3).repeat_interleave(8, 4)
        x = torch.cat([x[:, :, :1], x[:, :, 1:].repeat_interleave(4, 2)], 2)
        return torch.tanh(self.conv(x))


class OneOutput(Encoder):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return x


class Wrong(nn.Module):
    def __init__(self, wrong: str) -> None:
        super().__init__()
        self.wrong = wrong
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert self.wrong != "raises", "needs large frames"
        assert self.wrong != "bfloat16" or x.dtype == torch.bfloat16, "expects bfloat16"
        codes = torch.zeros([len(x), 1 + (x.shape[2] - 1) // 4, x.shape[3] // 8, x.shape[4] // 8])
        if self.wrong == "codes":
            codes = codes + 64_000
        return codes if self.wrong == "float" else codes.int(), x, x


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def program(module: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module.eval()), buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder()


@pytest.fixture(scope="module")
def tokenizer(encoder: Encoder) -> VideoTokenizer:
    return build_tokenizer(
        CONFIG, program(encoder), with_decoder=True, decoder_weights=program(Decoder())
    )


def test_codes_are_the_indices_of_the_program(encoder: Encoder, tokenizer: VideoTokenizer) -> None:
    pixels = noise(2, 9, 16, 24, 3)
    codes = tokenizer.encode(pixels)
    assert codes.shape == (2, 3, 2, 3)
    assert codes.dtype == torch.int64
    with torch.no_grad():
        indices, _, _ = encoder((pixels / 127.5 - 1).permute(0, 4, 1, 2, 3))
    assert (codes == indices).float().mean() > 0.99
    assert tokenizer.decode(codes).shape == (2, 9, 16, 24, 3)


@pytest.mark.parametrize(
    ("variant", "strides"), [("4x8x8", (4, 8)), ("8x8x8", (8, 8)), ("8x16x16", (8, 16))]
)
def test_every_variant_keeps_its_grid(variant: Any, strides: tuple[int, int]) -> None:
    config = CosmosDVConfig(kind="cosmos_dv", variant=variant, weights="s3://models/encoder.jit")
    built = build_tokenizer(config, program(Encoder(*strides)))
    time, space = strides
    codes = built.encode(noise(1, 1 + 2 * time, 2 * space, 3 * space, 3))
    assert codes.shape == (1, 3, 2, 3)
    assert config.traits.code_dtype == "uint16"


class ImageEncoder(Encoder):
    """(B, 3, H, W) -> (indices int32 (B, h, w), code vectors, loss), like that of Cosmos DI."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = self.conv(x.unsqueeze(2))[:, :, 0]
        z = z.unflatten(3, [-1, self.space]).unflatten(2, [-1, self.space]).mean([3, 5])
        digits = (torch.sigmoid(z.movedim(1, -1)) * 5).floor().long().clamp(max=4)
        basis = torch.tensor([1, 8, 64, 512, 2560, 12800])
        return (digits * basis).sum(-1).int(), z, z.mean()


class ImageDecoder(Decoder):
    """indices (B, h, w) -> (B, 3, H, W)."""

    def forward(self, indices: Tensor) -> Tensor:
        x = (indices.to(self.conv.weight.dtype) / 32000 - 1)[:, None, None]
        x = x.repeat_interleave(8, 3).repeat_interleave(8, 4)
        return torch.tanh(self.conv(x))[:, :, 0]


@pytest.mark.parametrize(("variant", "space"), [("8x8", 8), ("16x16", 16)])
def test_image_tokenizers_encode_frame_by_frame(variant: Any, space: int) -> None:
    weights = {"weights": "s3://models/encoder.jit", "decoder_weights": "s3://models/decoder.jit"}
    config = CosmosDIConfig(kind="cosmos_di", variant=variant, **weights)
    torch.manual_seed(0)
    encoder, with_decoder = ImageEncoder(space=space), space == 8
    built = build_tokenizer(
        config,
        program(encoder),
        with_decoder=with_decoder,
        decoder_weights=program(ImageDecoder()) if with_decoder else None,
    )
    pixels = noise(2, 3, 2 * space, 3 * space, 3)
    codes = built.encode(pixels)
    assert codes.shape == (2, 3, 2, 3)
    with torch.no_grad():
        indices, _, _ = encoder((pixels[1] / 127.5 - 1).permute(0, 3, 1, 2))
    assert (codes[1] == indices).float().mean() > 0.99
    assert built.encode_piece(pixels[:, :2], None)[0].equal(codes[:, :2])
    if with_decoder:
        assert built.decode(codes).shape == pixels.shape


@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        ((1, 2, 16, 16, 3), "=2 does not fit temporal stride 4: use 1 or 5"),
        ((1, 16, 16, 16, 3), "=16 does not fit temporal stride 4: use 13 or 17"),
        ((1, 5, 20, 16, 3), "height 20 is not a multiple"),
        ((1, 5, 16, 4, 3), "width 4 is not a multiple .*: use 8"),
    ],
)
def test_sizes_that_would_be_cropped_are_rejected(
    tokenizer: VideoTokenizer, shape: tuple[int, ...], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        tokenizer.encode(noise(*shape))


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        (lambda: b"not a file", "not a TorchScript file"),
        (lambda: program(Encoder())[:-100], "not a TorchScript file"),
        (lambda: saved({"a": torch.zeros(1)}), "not a TorchScript file"),
        (lambda: program(Wrong("float")), r"torch.float32 of shape .*, not integers of \(2, 2,"),
        (lambda: program(OneOutput()), r"returned torch.\w+ of shape .*, not integers of \(2, 2,"),
        (lambda: program(Encoder(2, 8)), r"returned torch.int32 of shape \(2, 3, 4, 5\), not"),
        (lambda: program(Encoder(4, 4)), r"returned torch.int32 of shape \(2, 2, 8, 10\), not"),
        (
            lambda: program(Wrong("codes")),
            "codes from 64000 to 64000, but the codebook has 0 to 63999",
        ),
        (lambda: program(Wrong("raises")), "needs large frames"),
        (lambda: program(Decoder()), "cosmos-dv 4x8x8, probed"),
    ],
)
def test_a_wrong_file_is_rejected_before_any_batch(weights: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)s3://models/encoder.jit.*{problem}"):
        build_tokenizer(CONFIG, weights())


def test_a_wrong_decoder_is_rejected_before_any_batch(encoder: Encoder) -> None:
    with pytest.raises(ConfigError, match="decoder_weights: missing"):
        build_tokenizer(CONFIG, program(encoder), with_decoder=True)
    wrong = program(Encoder())
    with pytest.raises(ConfigError, match=r"decoding codes of shape .* raised"):
        build_tokenizer(CONFIG, program(encoder), with_decoder=True, decoder_weights=wrong)


def test_another_dtype_is_probed_first(encoder: Encoder) -> None:
    tokenizer = build_tokenizer(CONFIG, program(encoder))
    wide = tokenizer.encode(noise(1, 5, 32, 32, 3))
    tokenizer.compute_in(torch.bfloat16)
    assert (tokenizer.encode(noise(1, 5, 32, 32, 3)) != wide).any()
    bound = build_tokenizer(CONFIG, program(Wrong("bfloat16").bfloat16()))
    assert bound.dtype == torch.bfloat16
    bound.compute_in(torch.bfloat16)
    assert bound.encode(noise(1, 5, 16, 16, 3)).shape == (1, 2, 2, 2)
    problem = r"(?s)^encode.dtype: .*expects bfloat16.*Set encode.dtype to that"
    with pytest.raises(ConfigError, match=problem):
        bound.compute_in(torch.float32)


def test_it_cannot_be_streamed(tokenizer: VideoTokenizer) -> None:
    with pytest.raises(ValueError, match="attention covers all earlier frames"):
        tokenizer.encode_piece(noise(1, 5, 16, 16, 3), None)
