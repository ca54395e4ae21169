"""VidTok on weights in its published layout; ``tests/golden`` has what its own code returns."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models import golden_fixtures as golden
from tests.models.adapter_helpers import file_of, noise
from tokpipe.config.published import presets_of
from tokpipe.config.tokenizer import VidTokConfig
from tokpipe.errors import WeightsMismatch
from tokpipe.models.tokenizers import VideoTokenizer, build_tokenizer
from tokpipe.models.tokenizers.vidtok import VidTokTokenizer

TINY: dict[str, Any] = {
    "ch": 8, "ch_mult": (1, 1, 2, 2), "num_res_blocks": 1, "levels": (8, 5, 4),
    "time_downsample_factor": 4,
}  # fmt: skip


def vidtok(release: str | None = "v1.0", **settings: Any) -> VidTokConfig:
    more = {} if "preset" in settings else {**TINY, "release": release}
    given = {"kind": "vidtok", "weights": "s3://models/w", **more, **settings}
    return VidTokConfig.model_validate(given)


def published_state(config: VidTokConfig) -> dict[str, Tensor]:
    """Weights with the keys and shapes of published ones, whose codes are spread out."""
    model = VidTokTokenizer(config, with_decoder=True).requires_grad_(False)
    golden.fill(model)
    model.encoder.conv_out.conv.weight.mul_(3)
    state = {}
    for key, value in model.state_dict().items():
        new = re.sub(r"\.attn_1\.(q|k|v|proj_out)\.", r".attn_1.\1.conv.", key)
        if new != key and value.ndim == 4:
            value = value.unsqueeze(-1)
        elif value.ndim == 5 and value.shape[-2:] == (1, 1):
            value = value.flatten(2)
        state[new] = value
    return state


def built(release: str = "v1.0", **settings: Any) -> VideoTokenizer:
    config = vidtok(release, **settings)
    return build_tokenizer(config, file_of(published_state(config)), with_decoder=True)


@pytest.mark.parametrize("case", ["vidtok_v1_0", "vidtok_v1_1"])
def test_codes_and_pixels_are_those_of_the_published_code(case: str) -> None:
    state, wanted = golden.weights(case), golden.outputs(case)
    config = vidtok(**golden.spec(case)["kwargs"])
    assert published_state(config).keys() == state.keys()
    tokenizer: Any = build_tokenizer(config, file_of(state), with_decoder=True)
    pixels = golden.pixels(case)
    assert torch.equal(tokenizer.encode(pixels), wanted["codes"])
    with torch.no_grad():
        floats = (pixels / 127.5 - 1).permute(0, 4, 1, 2, 3)
        golden.assert_agree(tokenizer.encoder(floats), wanted["latent"])
        golden.assert_agree(tokenizer._decode(wanted["codes"]), wanted["decoded"])
    encoder = {key: value for key, value in state.items() if key.startswith("encoder.")}
    assert torch.equal(build_tokenizer(config, file_of(encoder)).encode(pixels), wanted["codes"])


@pytest.mark.parametrize("release", ["v1.0", "v1.1"])
def test_codes_of_the_first_frames_do_not_depend_on_later_ones(release: str) -> None:
    tokenizer, pixels = built(release), noise(1, 13, 32, 32, 3)
    codes = tokenizer.encode(pixels)
    assert codes.shape == (1, 4, 4, 4)
    assert codes.unique().numel() > 10
    for frames in (1, 5, 9):
        assert torch.equal(tokenizer.encode(pixels[:, :frames]), codes[:, : 1 + frames // 4])
    changed = pixels.clone()
    changed[:, 9:] = 255 - changed[:, 9:]
    assert torch.equal(tokenizer.encode(changed)[:, :3], codes[:, :3])
    assert not torch.equal(tokenizer.encode(changed)[:, 3], codes[:, 3])


@pytest.mark.parametrize("cuts", [(1, 5, 9), (5,), (9,)])
def test_pieces_have_the_codes_and_pixels_of_the_whole_clip(cuts: tuple[int, ...]) -> None:
    tokenizer, pixels = built(), noise(2, 13, 16, 24, 3)
    codes = tokenizer.encode(pixels)
    whole = tokenizer.decode(codes)
    state = after = None
    found, frames = [], []
    for start, end in zip((0, *cuts), (*cuts, 13), strict=True):
        piece, state = tokenizer.encode_piece(pixels[:, start:end], state)
        some, after = tokenizer.decode_piece(piece, after)
        assert some.shape[1] == end - start
        found.append(piece)
        frames.append(some)
    assert torch.equal(torch.cat(found, dim=1), codes)
    assert (torch.cat(frames, dim=1).int() - whole.int()).abs().max() <= 1


def test_frames_of_v1_1_depend_on_later_latents_so_it_cannot_be_streamed() -> None:
    codes = torch.zeros(1, 4, 2, 2, dtype=torch.int64)
    changed = codes.clone()
    changed[:, 2:] = 100
    for release, first_other in (("v1.0", 5), ("v1.1", 2)):
        before, after = (built(release).decode(one) for one in (codes, changed))
        others = (before != after).flatten(2).any(2).squeeze(0).nonzero().flatten()
        assert int(others[0]) == first_other, release
    with pytest.raises(ValueError, match="its decoder interpolates in time"):
        built("v1.1").encode_piece(noise(1, 5, 16, 16, 3), None)


def test_both_releases_have_the_same_keys_and_other_codes() -> None:
    """The reason why ``release`` has no default."""
    old, new = vidtok("v1.0"), vidtok("v1.1")
    state = published_state(old)
    shapes = {key: value.shape for key, value in state.items()}
    assert {key: value.shape for key, value in published_state(new).items()} == shapes
    pixels = noise(1, 5, 32, 32, 3)
    codes = [build_tokenizer(config, file_of(state)).encode(pixels) for config in (old, new)]
    assert (codes[0] == codes[1]).float().mean() < 0.9


def test_time_is_halved_at_the_last_levels() -> None:
    """As published by default, for any number of levels, and for eight frames per latent frame."""
    for levels, factor, halving in ((4, 4, [1, 2]), (5, 4, [2, 3]), (4, 8, [0, 1, 2])):
        config = vidtok(ch_mult=(1,) * levels, time_downsample_factor=factor)
        keys = " ".join(published_state(config))
        down = {int(n) for n in re.findall(r"encoder\.down_temporal\.(\d)\.downsample", keys)}
        up = {int(n) for n in re.findall(r"decoder\.up_temporal\.(\d)\.upsample", keys)}
        assert sorted(down) == halving
        assert sorted(up) == ([1, 2] if factor == 4 else [1, 2, 3])


@pytest.mark.parametrize(
    ("preset", "grid", "codes", "millions"),
    [
        ("vidtok-488-4096", (4, 8), 4096, 157.4),
        ("vidtok-488-32768", (4, 8), 32_768, 157.4),
        ("vidtok-488-262144", (4, 8), 262_144, 157.5),
        ("vidtok-41616-262144", (4, 16), 262_144, 199.0),
        ("vidtok-488-32768-v1.1", (4, 8), 32_768, 157.4),
        ("vidtok-888-32768-v1.1", (8, 8), 32_768, 164.9),
        ("vidtok-41616-262144-v1.1", (4, 16), 262_144, 199.0),
    ],
)
def test_presets_have_the_published_grids_and_sizes(
    preset: str, grid: tuple[int, int], codes: int, millions: float
) -> None:
    config = vidtok(preset=preset)
    traits = config.traits
    assert (traits.temporal_stride, traits.spatial_stride) == grid
    assert traits.codebook_size == codes
    assert traits.code_dtype == ("uint16" if codes <= 65_536 else "uint32")
    assert (traits.why_not_streamable is None) == (config.release == "v1.0")
    assert config.name == preset
    with torch.device("meta"):
        model = VidTokTokenizer(config, with_decoder=True)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_every_preset_is_tested() -> None:
    (mark,) = test_presets_have_the_published_grids_and_sizes.pytestmark  # type: ignore[attr-defined]
    assert [row[0] for row in mark.args[1]] == presets_of("vidtok")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"encoder__mid__attn_1__q__conv__weight": None}, r"missing encoder\.mid\.attn_1\.q"),
        ({"decoder__extra": torch.zeros(1)}, r"unexpected decoder\.extra"),
        (
            {"encoder__down_temporal__1__downsample__mix_factor": torch.zeros(2)},
            r"down_temporal\.1\.downsample\.mix_factor is \(2,\), not \(1,\)",
        ),
    ],
)
def test_weights_load_strictly(changes: dict[str, Tensor | None], problem: str) -> None:
    config = vidtok()
    weights = file_of(published_state(config), **changes)
    with pytest.raises(WeightsMismatch, match=problem):
        build_tokenizer(config, weights, with_decoder=True)


def test_it_computes_in_bfloat16() -> None:
    tokenizer, pixels = built(), noise(1, 9, 64, 64, 3)
    wide = tokenizer.encode(pixels)
    tokenizer.compute_in(torch.bfloat16)
    codes = tokenizer.encode(pixels)
    assert {p.dtype for p in tokenizer.parameters()} == {torch.bfloat16}
    assert 0.5 < (codes == wide).float().mean() < 1
    assert tokenizer.decode(codes).shape == pixels.shape
