from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.train.training_helpers import config, settings
from tokpipe.errors import ConfigError
from tokpipe.train.config import load_training, parse_training

REPO = Path(__file__).parents[2]
BATCHES = [{"frames": 1, "clips": 1}]


def phase(**changes: Any) -> dict[str, Any]:
    return {"steps": 4, "size": 16, "batches": BATCHES, "learning_rate": [0.1, 0.1], **changes}


def test_the_file_of_the_shipped_checkpoint_is_valid() -> None:
    loaded = load_training(REPO / "examples" / "train.yaml")
    assert loaded.films[0].path == str(REPO / "examples" / "data" / "bigbuckbunny.mp4")
    assert loaded.films[0].last_frame == 92  # what comes after it is held out


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"learning_rte": 1}, "learning_rte: Extra inputs"),
        ({"phases": [phase(size=20)]}, "test.yaml: height 20 is no multiple"),
        ({"phases": [phase(batches=[{"frames": 3, "clips": 1}])]}, "phases: frames"),
        ({"phases": []}, "phases"),
        ({"scenes": None}, "nothing to train on"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"betas": [0.9, 1]}, "betas"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        config(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"decoder": None}, "decoder is missing"),
        ({"weights": "model.safetensors"}, "starts from random weights"),
        (
            {"quantizer": {"kind": "vq", "codebook_size": 8, "codebook_dim": 4}},
            "for fsq only",
        ),
    ],
)
def test_a_tokenizer_that_cannot_be_trained_is_refused(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    tokenizer = settings(tmp_path)["tokenizer"] | changes
    with pytest.raises(ConfigError, match=complaint):
        config(tmp_path, tokenizer=tokenizer, loss={"rounding": 0.1})


def test_paths_start_at_the_folder_of_the_file(tmp_path: Path) -> None:
    data = settings(tmp_path, output="out", films=[{"path": "a.mp4", "size": [16, 16]}])
    parsed = parse_training(data, name="t.yaml", root=tmp_path)
    assert parsed.output == str(tmp_path / "out")
    assert parsed.films[0].path == str(tmp_path / "a.mp4")


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "output: a\noutput: b\n"])
def test_a_file_that_holds_no_settings_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "train.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"train\.yaml"):
        load_training(tmp_path / "train.yaml")


def test_learning_rates_go_by_half_a_cosine_from_phase_to_phase(tmp_path: Path) -> None:
    phases = [
        phase(steps=2, learning_rate=[0, 1]),
        phase(steps=3, learning_rate=[1, 1]),
        phase(steps=4, learning_rate=[1, 0.2]),
    ]
    parsed = config(tmp_path, phases=phases)
    assert parsed.num_steps == 9
    rates = [parsed.phase_at(step)[1] for step in range(9)]
    assert rates == pytest.approx(
        [0, 0.5, 1, 1, 1, 1, 0.6 + 0.4 * 0.5**0.5, 0.6, 0.6 - 0.4 * 0.5**0.5]
    )
    with pytest.raises(ValueError, match="step 9 is past the last of 9"):
        parsed.phase_at(9)
