"""Traits that tokenizers declare, and the checks that follow from them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tokpipe.config import native_parts as parts
from tokpipe.config import tokenizer as kinds
from tokpipe.config.native_parts import Encoder3DConfig, FSQConfig, LFQConfig, Movq3DConfig
from tokpipe.config.tokenizer import NativeConfig
from tokpipe.config.traits import TokenizerTraits


def traits(**changes: Any) -> TokenizerTraits:
    settings = {"temporal_stride": 4, "spatial_stride": 8, "codebook_size": 100, **changes}
    return TokenizerTraits(**settings)


def encoder(**changes: Any) -> Encoder3DConfig:
    return Encoder3DConfig(ch=32, ch_mult=(1, 1, 1), z_channels=6, **changes)


def native(**changes: Any) -> NativeConfig:
    return NativeConfig(**{"encoder": encoder(), "quantizer": FSQConfig(kind="fsq"), **changes})


def custom(implementation: str = "a.b:C", **settings: Any) -> kinds.CustomConfig:
    settings |= {"kind": "custom", "declares": traits()}
    return kinds.CustomConfig(implementation=implementation, **settings)


@given(stride=st.integers(1, 9), k=st.integers(0, 50), grouped=st.booleans())
def test_frames_and_latent_frames_convert_both_ways(stride: int, k: int, grouped: bool) -> None:
    declared = traits(temporal_stride=stride, first_frames=stride if grouped else 1)
    frames = declared.first_frames + stride * k
    declared.check_num_frames(frames)
    assert declared.num_latent_frames(frames) == 1 + k
    assert declared.num_frames(1 + k) == frames


@given(stride=st.integers(1, 9), frames=st.integers(0, 100), grouped=st.booleans())
def test_an_invalid_length_is_rejected_with_valid_ones(
    stride: int, frames: int, grouped: bool
) -> None:
    declared = traits(temporal_stride=stride, first_frames=stride if grouped else 1)
    first = declared.first_frames
    if frames in {first + stride * k for k in range(101)}:
        declared.check_num_frames(frames)
        return
    with pytest.raises(ValueError, match=f"x={frames} does not fit temporal stride") as error:
        declared.check_num_frames(frames, "x")
    for advised in str(error.value).partition("use ")[2].partition(".")[0].split(" or "):
        declared.check_num_frames(int(advised))


@given(height=st.integers(0, 60), width=st.integers(1, 60), multiple=st.sampled_from([4, 8, 12]))
def test_a_wrong_size_is_rejected_with_valid_ones(height: int, width: int, multiple: int) -> None:
    declared = traits(spatial_stride=4, size_multiple=multiple)
    if height and not height % multiple and not width % multiple:
        declared.check_size(height, width)
        return
    with pytest.raises(ValueError, match=rf"not a multiple of .* {multiple}: use") as error:
        declared.check_size(height, width)
    advised = str(error.value).partition("use ")[2].partition(".")[0].split(" or ")
    assert all(int(side) % multiple == 0 and int(side) > 0 for side in advised)


def test_a_tokenizer_may_accept_squares_only() -> None:
    traits().check_size(8, 16)
    with pytest.raises(ValueError, match=r"frames of 8x16 are not square.* use 8x8"):
        traits(square_only=True).check_size(8, 16)


def test_policies_that_a_tokenizer_does_not_support_are_rejected() -> None:
    streamable = traits(why_not_streamable=None)
    for policy in ("independent", "overlap", "whole", "streaming"):
        streamable.check_policy(policy)
    with pytest.raises(ValueError, match="but its norms look ahead: use another policy"):
        traits(why_not_streamable="its norms look ahead").check_policy("streaming")
    exact = traits(first_frames=4, chunk_frames=4)
    exact.check_policy("independent")
    for policy in ("whole", "overlap"):
        with pytest.raises(ValueError, match=f"policy {policy} makes chunks of other lengths"):
            exact.check_policy(policy)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"first_frames": 2}, "first_frames=2 is neither 1 nor temporal_stride=4"),
        ({"size_multiple": 12}, "size_multiple=12 is not a multiple of spatial_stride=8"),
        ({"value_range": (1.0, -1.0)}, r"value_range \[1, -1\] is empty"),
        ({"layout": "BCHW"}, "layout BCHW takes frames one by one"),
        ({"chunk_frames": 16}, "chunk_frames=16 does not fit temporal stride 4: use 13 or 17"),
        ({"codebook_size": 2**63 + 1}, "less than or equal to 9223372036854775808"),
        ({"codebook_sizes": (8, 4)}, "codebook_sizes has 2 codebooks, the largest of 8"),
        (
            {
                "codes_per_position": 2,
                "codebook_size": 8,
                "codebook_sizes": (8, 4),
                "shared_codebook": True,
            },
            "shared_codebook has one size",
        ),
    ],
)
def test_contradictory_traits_are_rejected(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        traits(**changes)


def test_codes_use_the_smallest_dtype() -> None:
    assert traits(codebook_size=65_536).code_dtype == "uint16"
    assert traits(codebook_size=65_537).code_dtype == "uint32"


URI = "s3://models/w"
GUMBEL = parts.GumbelConfig(kind="gumbel", codebook_size=9, codebook_dim=6, latent_dim=5)


def vqgan(**settings: Any) -> kinds.VQGANConfig:
    return kinds.VQGANConfig.model_validate({"kind": "vqgan", "weights": URI, **settings})


def vidtok(**settings: Any) -> kinds.VidTokConfig:
    return kinds.VidTokConfig.model_validate({"kind": "vidtok", "weights": URI, **settings})


ALL: dict[str, kinds.TokenizerConfig] = {
    "native": native(),
    "movqgan": kinds.VQGANConfig.model_validate({"kind": "movqgan", "weights": URI}),
    "vqgan": kinds.VQGANConfig.model_validate({"kind": "vqgan", "weights": URI, "preset": "janus"}),
    "vqgan of video": vqgan(preset="open-magvit2-video"),
    "vidtok": vidtok(preset="vidtok-488-32768"),
    "vidtok v1.1": vidtok(preset="vidtok-488-32768-v1.1"),
    "emu3": kinds.Emu3Config(kind="emu3", weights=URI),
    "cosmos": kinds.CosmosDVConfig(kind="cosmos_dv", variant="8x16x16", weights=URI),
    "custom": custom(),
}


def test_outputs_of_kind_movqgan_keep_their_fingerprint() -> None:
    """Which has these settings, as releases before kind vqgan recorded them."""
    recorded = {
        "kind": "movqgan", "ch": 128, "ch_mult": [1, 2, 2, 4], "num_res_blocks": 4,
        "attn_resolutions": [32], "resolution": 256, "z_channels": 4, "embed_dim": 4,
        "codebook_size": 16_384,
    }  # fmt: skip
    old = {"kind": "movqgan", "weights": URI, "ch": 128, "num_res_blocks": 4}
    config = kinds.VQGANConfig.model_validate(old)
    assert config.codes_settings() == recorded
    assert (config.kind, config.name, config.decoder) == ("vqgan", "sber-movqgan", "movq")
    assert config.preset is None, "it is another model than that of the preset"
    full = kinds.VQGANConfig.model_validate({**recorded, "weights": URI, "name": "mine"})
    assert full.codes_settings() == recorded
    assert vqgan(preset="movqgan-102m").codes_settings() == recorded
    again = kinds.VQGANConfig.model_validate_json(config.model_dump_json())
    assert again == config


def test_settings_beside_a_preset_replace_its_own() -> None:
    config = vqgan(preset="ibq-1024", num_res_blocks=3, name="mine", ch_mult=[1, 2])
    found = (config.quantizer, config.codebook_size, config.num_res_blocks, config.ch_mult)
    assert found == ("ibq", 1024, 3, (1, 2))
    assert (config.name, vqgan(preset="ibq-1024").name) == ("mine", "ibq-1024")
    settings = config.codes_settings()
    assert "preset" not in settings
    others = ("vq", "vq_cosine", "gumbel")
    changed = [vqgan(preset="ibq-1024", quantizer=other).codes_settings() for other in others]
    assert len({str(one) for one in (*changed, settings)}) == 4


def test_outputs_of_image_tokenizers_keep_their_fingerprint() -> None:
    """From before ``convolutions``."""
    assert "convolutions" not in vqgan(preset="open-magvit2-128").codes_settings()
    assert vqgan(preset="open-magvit2-video").codes_settings()["convolutions"] == "causal_3d"


def test_every_kind_knows_its_traits() -> None:
    found = {}
    for name, config in ALL.items():
        t = config.traits
        frames = t.temporal_stride, t.first_frames, t.chunk_frames
        others = t.spatial_stride, t.codebook_size, t.layout, t.why_not_streamable is None
        found[name] = (*frames, *others)
    assert found == {
        "native": (4, 1, None, 4, 64_000, "BCTHW", False),
        "movqgan": (1, 1, None, 8, 16_384, "BCHW", True),
        "vqgan": (1, 1, None, 16, 16_384, "BCHW", True),
        "vqgan of video": (4, 1, None, 8, 262_144, "BCTHW", False),
        "vidtok": (4, 1, None, 8, 32_768, "BCTHW", True),
        "vidtok v1.1": (4, 1, None, 8, 32_768, "BCTHW", False),
        "emu3": (4, 4, 4, 8, 32_768, "BTCHW", False),
        "cosmos": (8, 1, None, 16, 64_000, "BCTHW", False),
        "custom": (4, 1, None, 8, 100, "BCTHW", False),
    }


@pytest.mark.parametrize("name", ALL)
def test_settings_that_do_not_affect_codes_stay_out_of_the_fingerprint(name: str) -> None:
    config = ALL[name]
    changes: dict[str, Any] = {"name": "another", "weights": "s3://elsewhere/w"}
    if "licence" in type(config).model_fields:
        changes["licence"] = "none"
    if isinstance(config, NativeConfig):
        changes["decoder"] = Movq3DConfig(ch_mult=(1, 1, 1))
        changes["seed"] = 5  # in the weights' hash, where it decides anything
    if isinstance(config, kinds.CosmosDVConfig):
        changes["decoder_weights"] = "s3://elsewhere/d"
    changed = config.model_copy(update=changes)
    assert changed != config
    assert changed.codes_settings() == config.codes_settings()


def test_settings_that_affect_codes_are_in_the_fingerprint() -> None:
    base = native(quantizer=LFQConfig(kind="lfq", dim=6))
    others = [
        native(quantizer=LFQConfig(kind="lfq", dim=6, bit_order="little")),
        native(quantizer=LFQConfig(kind="lfq", dim=6), norm="frame"),
        native(quantizer=LFQConfig(kind="lfq", dim=6), patch_size=2),
        native(quantizer=parts.VQConfig(kind="vq", codebook_size=64, codebook_dim=6)),
        native(quantizer=parts.VQConfig(kind="ema_vq", codebook_size=64, codebook_dim=6)),
        *list(ALL.values())[1:],
        *(custom("a.b:D"), custom(arguments={"x": 1})),
    ]
    seen = [str(config.codes_settings()) for config in (base, *others)]
    assert len(set(seen)) == len(seen)


def test_native_tokenizers_with_frame_norms_are_streamable() -> None:
    assert native(norm="frame").traits.why_not_streamable is None
    assert "norm=clip" in str(native().traits.why_not_streamable)
    for mode in ("reflect", "constant_published"):
        ahead = native(norm="frame", encoder=encoder(pad_mode=mode))
        assert f"encoder.pad_mode={mode} codes" in str(ahead.traits.why_not_streamable)


def test_patches_multiply_the_stride() -> None:
    assert native(patch_size=2).traits.spatial_stride == 8
    assert native(patch_size=4).pixel_channels == 48
    named = encoder(in_channels=12)
    assert native(patch_size=2, encoder=named).pixel_channels == 12
    with pytest.raises(ValidationError, match="in_channels=12, but patches of 1x1 pixels have 3"):
        native(encoder=named)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: native(decoder=Movq3DConfig()), "decoder.ch_mult has 4 levels but encoder"),
        (lambda: native(quantizer=GUMBEL), "takes 5 channels but encoder.z_channels=6"),
        (lambda: native(quantizer=FSQConfig(kind="fsq", levels=(2000,) * 6)), "is too large"),
        (
            lambda: kinds.Emu3Config(kind="emu3", weights=URI, attn_resolutions=(2,)),
            "names level 2, but attention is as wide as the last level, 3",
        ),
        (lambda: vqgan(preset="movqgan-67m", ch=33), "ch=33 times ch_mult=1"),
        (
            lambda: vqgan(preset="ibq-1024", quantizer="lfq"),
            r"attn_resolutions=\[16\] is not Open-MAGVIT2",
        ),
        (lambda: vqgan(preset="open-magvit2-256", embed_dim=14), "z_channels=18, embed_dim=14"),
        (
            lambda: vqgan(preset="ibq-1024", convolutions="causal_3d"),
            r"ibq with .* convolutions=causal_3d, .* is not Open-MAGVIT2: use lfq",
        ),
        (lambda: vqgan(preset="open-magvit2-video", ch_mult=(2, 1, 4)), "1 only at the first"),
        (lambda: vidtok(preset="vidtok-488-4096", ch_mult=(1, 2, 4)), "should have at least 4"),
        (lambda: vidtok(preset="ibq-1024"), "preset\n  Input should be 'vidtok-488-4096'"),
        (lambda: vidtok(preset="vidtok-488-4096", release=None), "release\n  Input should be"),
        (lambda: vqgan(), "quantizer\n  Field required"),
        (lambda: custom("a.b"), "'a.b' does not name a class"),
        (lambda: custom(probe_size=(9, 8)), "height 9 is not a multiple"),
    ],
)
def test_settings_that_do_not_fit_together_are_rejected(make: Any, problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        make()
