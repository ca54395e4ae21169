"""Weights of one family of tokenizers never pass for those of another, by what their keys say."""

import re
from collections.abc import Callable, Iterator
from itertools import permutations, product
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from tests.models.adapter_helpers import file_of, noise, randomize, small_native
from tests.models.test_adapters_cosmos import Encoder, ImageEncoder, program
from tests.models.test_adapters_vidtok import published_state, vidtok
from tests.models.test_adapters_vqgan import (
    in_llamagen_layout,
    in_video_layout,
    random_state,
    vqgan,
)
from tokpipe.config.job import StoreOptions
from tokpipe.config.native_parts import VQConfig
from tokpipe.config.published import presets_of
from tokpipe.config.tokenizer import (
    CosmosDIConfig,
    CosmosDVConfig,
    Emu3Config,
    TokenizerConfig,
    VidTokConfig,
)
from tokpipe.errors import ConfigError, WeightsMismatch
from tokpipe.models.tokenizers import build_tokenizer
from tokpipe.models.tokenizers.vqgan import VQGANTokenizer
from tokpipe.weights.read import read_weights

TINY: dict[str, Any] = {
    "ch": 32, "ch_mult": (1, 1, 1), "num_res_blocks": 1, "attn_resolutions": (64,),
    "z_channels": 10, "embed_dim": 10, "codebook_size": 1024,
}  # fmt: skip
EMU3: dict[str, Any] = {"base_channels": 32, "num_res_blocks": 1, "codebook_size": 1024}
VIDTOK: dict[str, Any] = {"ch": 32, "ch_mult": (1, 1, 1, 1), "levels": (2,) * 10}
CONFIGS: dict[str, TokenizerConfig] = {
    "taming": vqgan(quantizer="vq", **TINY),
    "ibq": vqgan(quantizer="ibq", **TINY),
    "gumbel": vqgan(quantizer="gumbel", **TINY),
    "llamagen": vqgan(quantizer="vq_cosine", **TINY),
    "janus in transformers": vqgan(quantizer="vq_cosine", **TINY),
    "chameleon": vqgan(quantizer="vq", **{**TINY, "attn_resolutions": ()}),
    "movqgan": vqgan(quantizer="vq", decoder="movq", **TINY),
    "open-magvit2": vqgan(quantizer="lfq", **{**TINY, "attn_resolutions": ()}),
    "open-magvit2 video": vqgan(
        quantizer="lfq", convolutions="causal_3d", **{**TINY, "attn_resolutions": ()}
    ),
    "vidtok": vidtok("v1.0", **VIDTOK),
    "vidtok v1.1": vidtok("v1.1", **VIDTOK),
    "native": small_native(VQConfig(kind="vq", codebook_size=1024, codebook_dim=10)),
    "emu3": Emu3Config(kind="emu3", weights="s3://w", channel_multiplier=(1, 1, 1, 1), **EMU3),
}
"""Of one size, so that no shape tells them apart."""
ALIKE = (
    *({"taming", "ibq"}, {"vidtok", "vidtok v1.1"}),  # the same keys and other codes
    {"llamagen", "janus in transformers"},  # one model
)
ENCODER_ALIKE = {"taming", "ibq", "movqgan", "janus in transformers"}
"""Whose encoders have the same keys: only decoders tell these apart."""


@pytest.fixture(scope="module")
def states() -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for name, config in CONFIGS.items():
        if name == "native":
            found[name] = dict(build_tokenizer(config, None).state_dict())
        elif name == "emu3":
            published = transformers.Emu3VQVAEConfig(
                **EMU3, channel_multiplier=[1, 1, 1, 1], hidden_size=32
            )
            model = transformers.Emu3VQVAE(published)
            randomize(model)
            found[name] = dict(model.state_dict())
        elif isinstance(config, VidTokConfig):
            found[name] = published_state(config)
        else:
            found[name] = random_state(vqgan(**config.model_dump(exclude={"kind", "weights"})))
    found["open-magvit2 video"] = in_video_layout(found["open-magvit2 video"])
    found["llamagen"] = in_llamagen_layout(found["llamagen"], 3)
    up = r"^decoder\.up\.(\d)"
    found["janus in transformers"] = {
        re.sub(up, lambda level: f"decoder.up.{2 - int(level[1])}", key): value
        for key, value in found["janus in transformers"].items()
    }
    return found


def without_decoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if not k.startswith(("decoder.", "post_quant_conv."))}


def loaded(
    states: dict[str, dict[str, Tensor]], folder: Path, kept: Callable[[Any], Any] = dict
) -> set[tuple[str, str]]:
    """Which weights a job of which tokenizer takes; all others have to be refused by name.

    Its driver reads the file, and its encoders get what encoding needs.
    """
    found = set()
    for given, wanted in product(CONFIGS, repeat=2):
        (folder / "w").write_bytes(file_of(kept(states[given])))
        config = CONFIGS[wanted].model_copy(update={"weights": str(folder / "w")})
        refused = None
        try:
            build_tokenizer(config, read_weights(config, StoreOptions()).encoding)
        except WeightsMismatch as error:
            refused = error
        if refused is None:
            found.add((given, wanted))
        else:
            assert refused.missing or refused.unexpected, (given, wanted)
            assert str(folder / "w") in str(refused)
    return found


ITSELF = {(name, name) for name in CONFIGS}


def test_weights_of_every_family_are_refused_by_every_other(
    states: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    alike = {pair for pair in permutations(CONFIGS, 2) if set(pair) in ALIKE}
    assert loaded(states, tmp_path) == ITSELF | alike


def test_weights_of_an_encoder_alone_load_where_nothing_contradicts(
    states: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    assert loaded(states, tmp_path, without_decoder) == {
        *ITSELF,
        *product(ENCODER_ALIKE, repeat=2),
        *((name, "llamagen") for name in ENCODER_ALIKE),  # whose own keys say what they are
        ("llamagen", "janus in transformers"),
        *permutations(("vidtok", "vidtok v1.1")),
    }


COSMOS: dict[str, tuple[CosmosDVConfig, torch.nn.Module]] = {
    **{
        f"{time}x{space}x{space}": (
            CosmosDVConfig.model_validate(
                {"kind": "cosmos_dv", "variant": f"{time}x{space}x{space}", "weights": "w"}
            ),
            Encoder(time, space),
        )
        for time, space in [(4, 8), (8, 8), (8, 16)]
    },
    **{
        f"{space}x{space}": (
            CosmosDIConfig.model_validate(
                {"kind": "cosmos_di", "variant": f"{space}x{space}", "weights": "w"}
            ),
            ImageEncoder(space=space),
        )
        for space in [8, 16]
    },
}
"""Programs, which have no keys: what they return for a small clip says what they are."""


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_cosmos_and_other_families_refuse_each_other(
    states: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    given = {name: program(module) for name, (_, module) in COSMOS.items()}
    given |= {name: file_of(state) for name, state in states.items()}
    wanted = {name: config for name, (config, _) in COSMOS.items()} | CONFIGS
    for (name, data), (other, config) in product(given.items(), wanted.items()):
        if name in CONFIGS and other in CONFIGS:
            continue
        (tmp_path / "w").write_bytes(data)
        there = config.model_copy(update={"weights": str(tmp_path / "w")})
        if name == other:
            build_tokenizer(there, read_weights(there, StoreOptions()).encoding)
            continue
        with pytest.raises(ConfigError, match=re.escape(str(tmp_path / "w"))):
            build_tokenizer(there, read_weights(there, StoreOptions()).encoding)


@pytest.mark.parametrize(
    ("given", "wanted", "problem"),
    [
        ("ibq", "movqgan", r"decoder\.norm_out\.\w+ have decoder: plain, but .* decoder: movq"),
        ("movqgan", "taming", r"\.conv_y\.\w+ have decoder: movq, but .* has decoder: plain"),
        ("llamagen", "taming", r"conv_blocks\..* have quantizer: vq_cosine, but .*quantizer: vq,"),
        ("taming", "llamagen", r"decoder\.up\..* have quantizer: vq or ibq, but .*: vq_cosine"),
        ("gumbel", "ibq", r"quantize\.proj\.\w+ have quantizer: gumbel, but .*quantizer: ibq"),
        ("open-magvit2", "ibq", r"\.mid_block\..* have quantizer: lfq, but .*quantizer: ibq"),
        ("open-magvit2 video", "open-magvit2", r"\.conv_1\..* have convolutions: causal_3d, but"),
        ("open-magvit2", "open-magvit2 video", r"missing (en|de)coder\..*\.conv\.weight"),
        ("vidtok", "open-magvit2 video", r"down_temporal\..* kind: vidtok, but .*kind: vqgan"),
        ("open-magvit2 video", "vidtok", r"unexpected (en|de)coder\."),
        ("emu3", "movqgan", r"unexpected (en|de)coder\."),
        ("native", "taming", r"unexpected encoder\.conv_in\.conv"),
    ],
)
@pytest.mark.parametrize("with_decoder", [False, True])
def test_the_error_names_the_key_and_the_setting(
    states: dict[str, dict[str, Tensor]],
    given: str,
    wanted: str,
    problem: str,
    with_decoder: bool,
) -> None:
    with pytest.raises(WeightsMismatch, match=problem):
        build_tokenizer(CONFIGS[wanted], file_of(states[given]), with_decoder=with_decoder)


def test_vq_and_ibq_differ_only_in_their_codes(states: dict[str, dict[str, Tensor]]) -> None:
    """The reason why ``quantizer`` has no default."""
    weights, pixels = file_of(states["ibq"]), noise(1, 4, 64, 64, 3)
    codes = [build_tokenizer(CONFIGS[name], weights).encode(pixels) for name in ("taming", "ibq")]
    assert (codes[0] == codes[1]).float().mean() < 0.9


def keys_and_shapes() -> Iterator[tuple[str, dict[str, Any]]]:
    for preset in presets_of("vqgan"):
        with torch.device("meta"):
            state = VQGANTokenizer(vqgan(preset=preset), with_decoder=True).state_dict()
        yield preset, {key: value.shape for key, value in state.items()}


def test_presets_of_full_size_differ_in_keys_or_shapes() -> None:
    """So strict loading refuses the weights of every other preset, except where it is the same."""
    found = dict(keys_and_shapes())
    alike = [pair for pair in permutations(found, 2) if found[pair[0]] == found[pair[1]]]
    assert {frozenset(pair) for pair in alike} == {
        frozenset({"llamagen-vq16", "janus"}),
        frozenset({"open-magvit2-256", "open-magvit2-pretrain-262144"}),
    }
    for one, other in alike:
        settings = [vqgan(preset=name).codes_settings() for name in (one, other)]
        assert settings[0] == settings[1]
    encoders = {
        name: {k: v for k, v in keys.items() if not k.startswith(("decoder.", "post_quant"))}
        for name, keys in found.items()
    }
    assert sum(a == b for a, b in permutations(encoders.values(), 2)) == len(alike)
