"""``tokpipe convert``: training checkpoints become folders that load strictly and make codes."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from torch import Tensor

from tests.models.adapter_helpers import file_of, noise, randomize, small_native
from tests.models.test_adapters_vidtok import published_state as vidtok_state
from tests.models.test_adapters_vidtok import vidtok
from tests.models.test_adapters_vqgan import (
    VIDEO,
    in_llamagen_layout,
    in_video_layout,
    published_state,
    random_state,
    vqgan,
)
from tokpipe.cli import main
from tokpipe.config import parse_job
from tokpipe.config.job import StoreOptions
from tokpipe.config.native_parts import FSQConfig
from tokpipe.config.tokenizer import VQGANConfig
from tokpipe.errors import ConfigError, WeightsMismatch
from tokpipe.models.tokenizers import build_tokenizer
from tokpipe.models.tokenizers.vqgan import VQGANTokenizer
from tokpipe.weights.convert import Choices, _infer, convert
from tokpipe.weights.read import read_weights

DEMO = yaml.safe_load((Path(__file__).parents[2] / "jobs/demo.yaml").read_text())
SMALL: dict[str, Any] = {"ch": 32, "num_res_blocks": 1, "codebook_size": 50}
CONFIG = VQGANConfig(kind="movqgan", weights="s3://m", ch_mult=(1, 1, 1, 2), **SMALL)
NATIVE = small_native(FSQConfig(kind="fsq"))


@pytest.fixture(scope="module")
def model() -> VQGANTokenizer:
    model = VQGANTokenizer(CONFIG, with_decoder=True)
    randomize(model)
    return model.eval()


def lightning(model: VQGANTokenizer) -> dict[str, Any]:
    """What the published training code saves: a discriminator, averages, and objects besides."""
    state = dict(model.state_dict())
    state["loss.discriminator.main.0.weight"] = torch.zeros(3)
    for part in ("encoder", "decoder", "quantize", "quant_conv", "post_quant_conv"):
        for key, value in model.get_submodule(part).state_dict().items():
            state[f"ema_{part}.{key.replace('.', '')}"] = value * 1.25
        state[f"ema_{part}.decay"] = torch.tensor(0.9999)
        state[f"ema_{part}.num_updates"] = torch.tensor(7)
    return {"state_dict": state, "epoch": 3, "hyper_parameters": argparse.Namespace(path=Path("/"))}


def converted(folder: Path, content: Any, **arguments: Any) -> list[str]:
    """What is printed when ``m.ckpt`` in ``folder``, which holds ``content``, becomes ``out``."""
    folder.mkdir(exist_ok=True)
    torch.save(content, folder / "m.ckpt")
    options = {"kind": "movqgan", **arguments}
    return list(convert(folder / "m.ckpt", folder / "out", **options))


def written(folder: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder / "out/model.safetensors")


def tokenizer_of(folder: Path, *, with_decoder: bool = True) -> Any:
    """The tokenizer of a checkpoint folder, as a job would build it."""
    job = {**DEMO, "tokenizer": {"checkpoint": str(folder)}, "chunking": {"policy": "whole"}}
    config = parse_job(yaml.safe_dump(job), name="j", root=Path("/"), environ={}).tokenizer
    weights = read_weights(config, StoreOptions(), with_decoder=with_decoder)
    return build_tokenizer(config, weights.encoding, with_decoder=with_decoder)


def test_a_published_checkpoint_becomes_a_folder_for_jobs(
    model: VQGANTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, folder = tmp_path / "m.ckpt", tmp_path / "out/movqgan"
    torch.save(lightning(model), source)
    assert main(["convert", str(source), "--kind", "movqgan", "-o", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "left out 1 keys below 'loss.'" in printed
    assert "moving averages; --ema takes them" in printed
    assert f"{folder}: vqgan, 1x8x8 pixels per code, 50 codes" in printed
    assert yaml.safe_load((folder / "config.yaml").read_text()) == {
        "kind": "vqgan", "quantizer": "vq", "decoder": "movq", "name": "m", "ch": 32,
        "ch_mult": [1, 1, 1, 2], "num_res_blocks": 1, "attn_resolutions": [32], "z_channels": 4,
        "embed_dim": 4, "codebook_size": 50,
    }  # fmt: skip
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "model.safetensors"]
    assert list(folder.parent.iterdir()) == [folder]
    tokenizer = tokenizer_of(folder)
    pixels = noise(1, 2, 16, 16, 3)
    codes = tokenizer.encode(pixels)
    assert torch.equal(codes, model.encode(pixels))
    assert torch.equal(tokenizer.decode(codes), model.decode(codes))


def test_ema_takes_the_moving_averages(model: VQGANTokenizer, tmp_path: Path) -> None:
    lines = converted(tmp_path, lightning(model), **EMA)
    wanted = model.state_dict()
    assert (
        f"{tmp_path}/m.ckpt: took {len(wanted):,} moving averages instead of the weights" in lines
    )
    found = written(tmp_path)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key] * 1.25) for key in wanted)

    state = {**wanted, **{f"model_ema.{key.replace('.', '')}": 2 * wanted[key] for key in wanted}}
    del state["model_ema.quant_convbias"]
    lines = converted(tmp_path / "b", state, **EMA)
    assert f"{tmp_path}/b/m.ckpt: 1 keys have no average, such as quant_conv.bias" in lines
    found = written(tmp_path / "b")
    assert torch.equal(found["quant_conv.weight"], wanted["quant_conv.weight"] * 2)
    assert torch.equal(found["quant_conv.bias"], wanted["quant_conv.bias"])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_strip_and_drop_select_keys_by_prefix(tmp_path: Path, suffix: str) -> None:
    wanted = build_tokenizer(NATIVE, None).state_dict()
    state = {f"model.{key}": value for key, value in wanted.items()}
    state |= {"model.loss.w": torch.zeros(1), "discriminator.w": torch.zeros(1)}
    source, config = tmp_path / f"m{suffix}", tmp_path / "native.yaml"
    if suffix == ".pth":
        torch.save({"weights": state, "model": 3}, source)
    else:
        safetensors.torch.save_file(state, source)
    config.write_text(NATIVE.model_dump_json(exclude_unset=True))
    entry = "weights" if suffix == ".pth" else None
    choices = Choices(state=entry, strip="model.", drop=("loss.",))
    lines = list(convert(source, tmp_path / "out", config=config, choices=choices))
    assert f"{source}: took the {len(wanted)} of {len(wanted) + 1} keys below 'model.'" in lines
    found = written(tmp_path)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("below", ["", "model."], ids=["beside", "below"])
@pytest.mark.parametrize("of_whole", [False, True], ids=["LitEma(self.model)", "LitEma(self)"])
def test_strip_drop_and_ema_work_together(tmp_path: Path, below: str, of_whole: bool) -> None:
    """On a LightningModule with a model, its averages, and a discriminator in the one or other."""
    wanted = build_tokenizer(NATIVE, None).state_dict()
    state = {f"model.{key}": value for key, value in wanted.items()}
    for key, value in wanted.items():
        name = f"model.{key}" if of_whole else key
        state[f"model_ema.{name.replace('.', '')}"] = value * 2
    state[f"{below}loss.w"] = torch.zeros(1)
    config = tmp_path / "native.yaml"
    config.write_text(NATIVE.model_dump_json(exclude_unset=True))
    choices = Choices(ema=True, strip="model.", drop=("loss.",))
    lines = converted(tmp_path, {"state_dict": state}, kind=None, config=config, choices=choices)
    assert f"{tmp_path}/m.ckpt: left out 1 keys below 'loss.'" in lines
    found = written(tmp_path)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key] * 2) for key in wanted)


W = {"w": torch.ones(1)}
EMA = {"choices": Choices(ema=True)}
NO_LOSS = Choices(drop=("loss.",))
AVERAGES = {"a.b.c": torch.ones(1), "a.bc": torch.ones(1), "model_ema.abc": torch.ones(1)}


@pytest.mark.parametrize(
    ("content", "arguments", "problem"),
    [
        (
            {"state_dict": {}, "n": 3},
            {"choices": Choices(state="n")},
            "the entry 'n'; it is a map",
        ),
        ({"epoch": 3, "best": "x"}, {}, r"that can be found; .* epoch \(a int\), best \(a str\)"),
        (argparse.Namespace(), {}, "it is a argparse.Namespace with no entries.*its state_dict"),
        ({"state_dict": {"w": 3}}, {}, "among its weights, w is a int. Only dense tensors"),
        (W, {}, "is not a checkpoint of kind movqgan: it has no 'encoder"),
        (W, {"kind": "emu3"}, "is not a checkpoint of kind emu3"),
        (W, EMA, "has no moving averages"),
        (AVERAGES, EMA, r"a\.bc and a\.b\.c share one moving average"),
    ],
)
def test_errors_say_what_the_checkpoint_holds(
    tmp_path: Path, content: Any, arguments: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        converted(tmp_path, content, **arguments)
    assert not (tmp_path / "out").exists()


def test_weights_that_do_not_fit_leave_no_files(model: VQGANTokenizer, tmp_path: Path) -> None:
    problem = r"m.ckpt: the weights do not fit .*unexpected extra.w"
    with pytest.raises(WeightsMismatch, match=problem):
        converted(tmp_path, {**model.state_dict(), "extra.w": torch.zeros(1)})
    assert [path.name for path in tmp_path.iterdir()] == ["m.ckpt"]


SHAPE: dict[str, Any] = {
    "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [128], "z_channels": 6,
    "embed_dim": 6, "codebook_size": 64,
}  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {"quantizer": "vq", "decoder": "movq", **SHAPE},
        {"quantizer": "gumbel", "decoder": "plain", **SHAPE},
        {"quantizer": "vq_cosine", "decoder": "plain", **SHAPE},
        {"quantizer": "lfq", "decoder": "plain", **SHAPE, "attn_resolutions": []},
    ],
    ids=lambda settings: settings["quantizer"],
)
@pytest.mark.parametrize("only_encoder", [False, True])
def test_settings_of_the_vqgan_family_follow_from_the_weights(
    tmp_path: Path, settings: dict[str, Any], only_encoder: bool
) -> None:
    config = vqgan(**settings)
    state = {**published_state(config), "loss.discriminator.w": torch.zeros(1)}
    wanted = build_tokenizer(config, file_of(published_state(config)))
    if only_encoder:
        state = {k: v for k, v in state.items() if not k.startswith(config.decoder_keys)}
    kind = "movqgan" if settings["decoder"] == "movq" else "vqgan"
    lines = converted(tmp_path, {"state_dict": state}, kind=kind)
    assert "left out 1 keys below 'loss.'" in lines[0]
    assert ("none of a decoder" in lines[-1]) == only_encoder
    found = yaml.safe_load((tmp_path / "out/config.yaml").read_text())
    if only_encoder and kind == "vqgan":
        settings = {name: value for name, value in settings.items() if name != "decoder"}
    assert found == {"kind": "vqgan", "name": "m", **settings}
    pixels = noise(1, 2, 16, 16, 3)
    tokenizer = tokenizer_of(tmp_path / "out", with_decoder=not only_encoder)
    assert torch.equal(tokenizer.encode(pixels), wanted.encode(pixels))


@pytest.mark.parametrize("only_encoder", [False, True])
def test_what_tells_vq_from_ibq_has_to_be_said(tmp_path: Path, only_encoder: bool) -> None:
    state = random_state(vqgan(quantizer="ibq", **SHAPE))
    if only_encoder:
        state = {k: v for k, v in state.items() if not k.startswith("decoder.")}
    options = "vq or ibq or vq_cosine" if only_encoder else "vq or ibq"
    problem = rf"do not show how a code is found.* --config with .*quantizer: {options}[,}}]"
    with pytest.raises(ConfigError, match=problem):
        converted(tmp_path, state, kind="vqgan")
    text = yaml.safe_dump({"kind": "vqgan", "quantizer": "ibq", **SHAPE})
    (tmp_path / "c.yaml").write_text(text)
    converted(tmp_path, state, kind=None, config=tmp_path / "c.yaml")
    assert tokenizer_of(tmp_path / "out", with_decoder=False).quantize.search == "dot"


@pytest.mark.parametrize(
    ("preset", "named"),
    [
        ("open-magvit2-pretrain-16384", "open-magvit2-pretrain-16384"),
        ("open-magvit2-128", "open-magvit2-128"),
        ("movqgan-67m", "movqgan-67m"),
        ("janus", "llamagen-vq16"),  # the same model
        ("taming-f16-1024", "taming-f16-1024"),
        ("ibq-1024", "ibq-1024"),
        ("chameleon", "chameleon"),
        ("taming-gumbel-f8", "taming-gumbel-f8"),
    ],
)
def test_weights_of_a_preset_are_recognized(preset: str, named: str) -> None:
    config = vqgan(preset=preset)
    with torch.device("meta"):
        state = VQGANTokenizer(config, with_decoder=True).state_dict()
    if config.quantizer == "vq_cosine":
        state = in_llamagen_layout(dict(state), len(config.ch_mult))
    for kept in (state, {k: v for k, v in state.items() if not k.startswith(config.decoder_keys)}):
        assert _infer("vqgan", kept, Path("m")) == {"kind": "vqgan", "preset": named}


def test_video_tokenizers_become_folders_for_jobs(tmp_path: Path) -> None:
    pixels = noise(1, 5, 16, 16, 3)
    for name, config, state in (
        ("vidtok", vidtok("v1.1"), vidtok_state(vidtok("v1.1"))),
        ("vqgan", vqgan(**VIDEO), in_video_layout(published_state(vqgan(**VIDEO)))),
    ):
        saved = {"state_dict": {**state, "loss.logvar": torch.zeros(1)}}
        settings = config.model_dump_json(exclude={"weights", "name"})
        (tmp_path / f"{name}.json").write_text(settings)
        how: dict[str, Any] = {"kind": "vqgan"}
        if name == "vidtok":
            how = {"kind": None, "config": tmp_path / f"{name}.json", "choices": NO_LOSS}
        lines = converted(tmp_path / name, saved, **how)
        assert "left out 1 keys below 'loss.'" in lines[0]
        assert written(tmp_path / name).keys() == state.keys(), "as published"
        tokenizer = tokenizer_of(tmp_path / name / "out")
        wanted = build_tokenizer(config, file_of(state), with_decoder=True)
        codes = tokenizer.encode(pixels)
        assert torch.equal(codes, wanted.encode(pixels))
        assert torch.equal(tokenizer.decode(codes), wanted.decode(codes))


def test_a_preset_is_named_to_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(published_state(vqgan(quantizer="vq_cosine", **SHAPE)), tmp_path / "m.ckpt")
    command = ["convert", str(tmp_path / "m.ckpt"), "--preset", "janus", "-o", str(tmp_path / "o")]
    assert main(command) == 2, "these are smaller"
    printed = capsys.readouterr()
    assert "m.ckpt: preset janus, quantizer vq_cosine" in printed.out
    assert "m.ckpt: the weights do not fit VQGANTokenizer: missing decoder." in printed.err
    for name, kind in (("janus", "vqgan"), ("vidtok-488-4096", "vidtok")):
        assert _infer(name, {}, Path("m")) == {"kind": kind, "preset": name}


def test_existing_files_are_not_overwritten(model: VQGANTokenizer, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/model.safetensors").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"out/model.safetensors already exists"):
        converted(tmp_path, model.state_dict())
    assert (tmp_path / "out/model.safetensors").read_bytes() == b"mine"


def test_settings_come_from_kind_or_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.yaml"
    for options in ([], ["--kind", "movqgan", "--config", str(config)]):
        with pytest.raises(SystemExit, match="2"):
            main(["convert", "m.ckpt", "-o", str(tmp_path / "out"), *options])
        assert "--config" in capsys.readouterr().err
    for text, problem in (
        ("weights: x", "must hold a tokenizer section without weights"),
        ("a: [", r"c.yaml: is not valid YAML, near line 1"),
        ("kind: movqgan\nch: 33", r"does not describe a tokenizer: .*ch=33"),
    ):
        config.write_text(text)
        with pytest.raises(ConfigError, match=problem):
            converted(tmp_path, W, kind=None, config=config)
