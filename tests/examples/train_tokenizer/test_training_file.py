from pathlib import Path
from typing import Any

import pytest

from examples.train_tokenizer.config import TrainConfig, load_training
from tests.examples.train_tokenizer.conftest import Config, Settings, phase
from tokpipe.config.checkpoint import read_local, resolve_checkpoint
from tokpipe.config.explain import validate_settings
from tokpipe.config.sources import TableSource
from tokpipe.config.tokenizer import NativeConfig
from tokpipe.errors import ConfigError

REPO = Path(__file__).parents[3]


def test_the_training_file_of_the_built_in_tokenizer_is_valid() -> None:
    loaded = load_training(REPO / "examples" / "demo_tokenizer" / "train.yaml")
    *_, video = loaded.sources
    assert isinstance(video, TableSource)
    assert video.uri == str(REPO / "examples" / "data" / "training_span.csv")
    section, _ = resolve_checkpoint({"checkpoint": "builtin://fsq-4x8x8"}, read_local, {})
    shipped = validate_settings(NativeConfig, section, name="the built-in tokenizer")
    assert shipped == loaded.tokenizer.model_copy(update={"weights": shipped.weights})


def test_the_training_file_of_the_page_is_valid() -> None:
    loaded = load_training(REPO / "examples" / "train_tokenizer" / "small.yaml")
    _, scenes = loaded.sources
    assert scenes.uri == str(REPO / "out" / "scenes" / "*.mp4")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"weight_decy": 1}, "unknown key 'weight_decy'; did you mean 'weight_decay'"),
        ({"phases": [phase(size=20)]}, "test.yaml: height 20 is"),
        ({"phases": [phase(size=32)]}, "crops of 32x32 do not fit .* side is 24: raise frames"),
        ({"phases": [phase(batches=[{"frames": 3, "clips": 1}])]}, "phases: frames"),
        ({"phases": [phase(batches=[{"frames": 9, "clips": 1}])]}, "9 frames are more than samp"),
        ({"phases": []}, "phases"),
        ({"sources": []}, "sources"),
        ({"shares": [1, 1]}, "shares: 2 numbers for 1 sources"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"output": "s3://bucket/run"}, "output: .*write a local folder"),
        ({"betas": [0.9, 1]}, "betas"),
    ],
)
def test_a_wrong_setting_is_named(config: Config, changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        config(**changes)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"decoder": None}, "decoder is missing"),
        ({"weights": "model.safetensors"}, "starts from random weights"),
        ({"quantizer": {"kind": "vq", "codebook_size": 8, "codebook_dim": 4}}, "are for fsq"),
    ],
)
def test_a_tokenizer_that_cannot_be_trained_is_rejected(
    settings: Settings, config: Config, changes: dict[str, Any], complaint: str
) -> None:
    tokenizer = settings()["tokenizer"] | changes
    with pytest.raises(ConfigError, match=complaint):
        config(tokenizer=tokenizer, loss={"rounding": 0.1})


def test_relative_paths_start_at_the_folder_of_the_file(settings: Settings, tmp_path: Path) -> None:
    data = settings(output="out", sources=[{"kind": "files", "uri": "*.mp4"}])
    parsed = validate_settings(TrainConfig, data, name="t.yaml", context={"root": tmp_path})
    assert parsed.output == str(tmp_path / "out")
    assert parsed.sources[0].uri == str(tmp_path / "*.mp4")


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "output: a\noutput: b\n", "\xff"])
def test_a_file_without_settings_is_rejected_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "train.yaml").write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"train\.yaml"):
        load_training(tmp_path / "train.yaml")


def test_learning_rates_follow_half_a_cosine_from_phase_to_phase(config: Config) -> None:
    given = ((2, [0, 1]), (3, [1, 1]), (4, [1, 0.2]))
    parsed = config(phases=[phase(steps=steps, learning_rate=rate) for steps, rate in given])
    assert parsed.num_steps == 9
    rates, root = [parsed.phase_at(step)[1] for step in range(9)], 0.5**0.5
    assert rates == pytest.approx([0, 0.5, 1, 1, 1, 1, 0.6 + 0.4 * root, 0.6, 0.6 - 0.4 * root])
    with pytest.raises(ValueError, match="step 9 is past the last of 9"):
        parsed.phase_at(9)
