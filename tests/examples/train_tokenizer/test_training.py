"""Optimizer steps, checkpoints, the log and the losses."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from examples.demo_tokenizer.evaluate import open_checkpoint, read_clips
from examples.train_tokenizer.__main__ import main
from examples.train_tokenizer.config import LossConfig, TrainConfig
from examples.train_tokenizer.loop import (
    LOG_NAME,
    STATE_NAME,
    Trainer,
    guide,
    losses,
    reconstruct,
    scaled,
    spread,
    train,
)
from tests.examples.train_tokenizer.conftest import Config, Settings, phase
from tests.models.adapter_helpers import noise
from tokpipe.errors import ConfigError
from tokpipe.models import FSQ

NOISE = noise(2, 1, 16, 16, 3)
SAMPLE = Path(__file__).parents[3] / "examples" / "data" / "bigbuckbunny.mp4"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in trainer.tokenizer.state_dict().items()}


Capture = pytest.CaptureFixture[str]


def logged(folder: Path) -> list[dict[str, Any]]:
    """The log, without times."""
    lines = [json.loads(line) for line in (folder / LOG_NAME).read_text().splitlines()]
    for line in lines:
        assert line.pop("seconds_per_step") > 0
    return lines


def call_at_step(step: int, action: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer.train_step

    def patched(self: Trainer, pixels: torch.Tensor) -> dict[str, float | torch.Tensor]:
        if self.step == step:
            action()
        return original(self, pixels)

    monkeypatch.setattr(Trainer, "train_step", patched)


def interrupt(config: TrainConfig, step: int) -> None:
    """Kill a run before the step."""

    def kill() -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        call_at_step(step, kill, patch)
        with pytest.raises(KeyboardInterrupt):
            train(config)


def test_the_loss_goes_down(config: Config) -> None:
    trainer = Trainer(config(phases=[phase(steps=40, learning_rate=[0.002, 0.002])]))
    pixels = torch.from_numpy(next(read_clips(SAMPLE, 16, 80))[::20, None])
    values = [float(trainer.train_step(pixels)["mse"]) for _ in range(40)]
    assert np.mean(values[-10:]) < 0.5 * np.mean(values[:5])


def test_a_continued_run_equals_one_that_was_never_stopped(config: Config, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config(output=str(whole), checkpoint_every_s=1e9))
    every_step = config(output=str(parts), checkpoint_every_s=1e-9)
    interrupt(every_step, step=3)
    assert train(every_step.model_copy(update={"data_threads": 2})) is not None
    assert logged(parts) == logged(whole)
    states = [torch.load(folder / STATE_NAME, weights_only=True) for folder in (whole, parts)]
    for part in ("weights", "average"):
        for key, value in states[0][part].items():
            assert torch.equal(value, states[1][part][key]), key


def test_sigterm_saves_the_run_after_the_current_step(
    settings: Settings, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [str(tmp_path / "train.yaml")]
    (tmp_path / "train.yaml").write_text("output: x\n")
    assert main(command) == 2
    assert "tokenizer: is missing" in capsys.readouterr().err
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(settings()))
    call_at_step(2, lambda: signal.raise_signal(signal.SIGTERM), monkeypatch)
    assert main(command) == 128 + signal.SIGTERM
    assert "run the same command to continue" in capsys.readouterr().out
    assert [line["step"] for line in logged(tmp_path / "run")] == [1, 2, 3]
    assert main(command) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "run" / "tokenizer")
    assert [line["step"] for line in logged(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_a_loss_that_is_not_finite_ends_the_command_with_what_to_change(
    settings: Settings, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "train.yaml").write_text(
        yaml.safe_dump(settings(phases=[phase(steps=40, learning_rate=[1e30, 1e30])]))
    )
    assert main([str(tmp_path / "train.yaml")]) == 7
    printed = capsys.readouterr().err
    assert "Lower learning_rate" in printed
    assert "Traceback" not in printed


def test_steps_that_a_kill_undid_are_logged_once(config: Config, tmp_path: Path) -> None:
    run = config(checkpoint_every_s=1e-9)
    interrupt(run, step=2)
    log = tmp_path / "run" / LOG_NAME
    log.write_text(log.read_text() + '{"step": 5, "mse": 1}\n{"step": 6, "m')
    train(run)
    assert [line["step"] for line in logged(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_a_finished_run_is_left_alone_until_phases_are_added(
    config: Config, settings: Settings, tmp_path: Path
) -> None:
    folder = train(config())
    assert folder is not None
    before = (folder / "model.safetensors").read_bytes()
    assert train(config()) == folder
    assert (folder / "model.safetensors").read_bytes() == before
    assert len(logged(tmp_path / "run")) == 6
    (first,) = settings()["phases"]
    more = {**first, "steps": 2, "loss": {"l1": 0.5, "rounding": 0.1}}
    train(config(phases=[first, more]))
    lines = logged(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert ["rounding" in line for line in lines] == [False] * 6 + [True] * 2


def test_a_saved_run_is_compared_without_variables_of_the_reader(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARY", "secret-of-the-reader")
    trainer = Trainer(config())
    state = trainer.state()
    theirs = json.loads(state["config"])
    theirs["sources"][0]["uri"] = "https://theirs/${CANARY}"
    with pytest.raises(ConfigError, match=r"sources: .*https://theirs/\$\{CANARY\}") as caught:
        trainer.load({**state, "config": json.dumps(theirs)}, "training.pt")
    assert "secret-of-the-reader" not in str(caught.value)


def test_what_the_finished_steps_depend_on_cannot_change(
    config: Config, settings: Settings, tmp_path: Path, videos: Path
) -> None:
    for name in ("0.mp4", "1.mp4"):
        (tmp_path / name).symlink_to(videos / name)
    sources = [{"kind": "files", "uri": str(tmp_path / "*.mp4")}]
    train(config(sources=sources))
    with pytest.raises(ConfigError, match=r"seed: 0 -> 1"):
        train(config(sources=sources, seed=1))
    (first,) = settings()["phases"]
    changed = [{**first, "learning_rate": [0.002, 0.001]}]
    with pytest.raises(ConfigError, match=r"phases: of the 6 finished steps"):
        train(config(sources=sources, phases=changed))
    state = torch.load(path := tmp_path / "run/training.pt", weights_only=True)
    del state["log_bytes"]  # a run of an older version continues too, and keeps its log
    torch.save(state, path)
    log = (tmp_path / "run/log.jsonl").read_bytes()
    train(config(sources=sources))
    assert (tmp_path / "run/log.jsonl").read_bytes() == log
    (tmp_path / "2.mp4").symlink_to(videos / "2.mp4")
    with pytest.raises(ConfigError, match=r"training\.pt: the sources list different rows"):
        train(config(sources=sources))


def test_the_average_follows_the_weights_by_its_decay(config: Config) -> None:
    trainer = Trainer(config(ema_decay=0.3))
    key = "encoder.conv_in.conv.weight"
    average = trainer.average[key].clone()
    for decay in (0.1, 2 / 11, 0.25, 0.3, 0.3):  # (1 + n) / (10 + n), but at most ema_decay
        trainer.train_step(NOISE)
        average = decay * average + (1 - decay) * trainer.tokenizer.state_dict()[key]
        torch.testing.assert_close(trainer.average[key], average)
    assert not torch.equal(trainer.average[key], trainer.tokenizer.state_dict()[key])


def test_the_trained_tokenizer_is_the_average_in_float16(config: Config, tmp_path: Path) -> None:
    stored = open_checkpoint(str(train(config()))).state_dict()
    average = torch.load(tmp_path / "run" / STATE_NAME, weights_only=True)["average"]
    assert stored.keys() == average.keys()
    for key, value in average.items():
        assert torch.equal(stored[key], value.half().float()), key


def test_initial_weights_follow_the_seed_and_blocks_start_as_identity(config: Config) -> None:
    first, again, other = (Trainer(config(seed=seed)).tokenizer for seed in (0, 0, 1))
    key = "decoder.conv_in.conv.weight"
    assert torch.equal(first.state_dict()[key], again.state_dict()[key])
    assert not torch.equal(first.state_dict()[key], other.state_dict()[key])
    x = torch.randn(1, 32, 5, 8, 8)
    assert torch.equal(first.get_submodule("encoder.down.0.block.0")(x), x)


@pytest.mark.parametrize(
    "quantizer",
    [
        {"kind": "vq", "codebook_size": 16, "codebook_dim": 4},
        {"kind": "ema_vq", "codebook_size": 16, "codebook_dim": 4},
        {"kind": "gumbel", "codebook_size": 4, "codebook_dim": 3, "latent_dim": 4},
        {"kind": "lfq", "dim": 4},
    ],
    ids=lambda quantizer: quantizer["kind"],
)
def test_gradients_pass_through_every_quantizer(
    config: Config, settings: Settings, quantizer: dict[str, Any]
) -> None:
    trainer = Trainer(config(tokenizer={**settings()["tokenizer"], "quantizer": quantizer}))
    before, random_state = weights_of(trainer), torch.get_rng_state()
    terms = [trainer.train_step(NOISE) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), random_state)
    assert terms[0]["quantizer"] != 0
    moved = {k for k, v in weights_of(trainer).items() if not torch.equal(v, before[k])}
    assert "encoder.conv_in.conv.weight" in moved
    assert any(key.startswith("quantizer.") for key in moved) == (quantizer["kind"] != "lfq")


def test_bfloat16_trains_float32_weights(config: Config) -> None:
    trainer, exact = Trainer(config(dtype="bfloat16")), Trainer(config())
    loss, exact_loss = (float(run.train_step(NOISE)["loss"]) for run in (trainer, exact))
    assert loss != exact_loss
    assert loss == pytest.approx(exact_loss, rel=0.05)
    assert {value.dtype for value in weights_of(trainer).values()} == {torch.float32}


@torch.no_grad()
def test_losses_are_what_their_names_say(config: Config) -> None:
    tokenizer = Trainer(config()).tokenizer
    x = scaled(noise(2, 5, 16, 16, 3))
    assert x.shape == (2, 3, 5, 16, 16)
    assert (float(x.min()), float(x.max())) == (-1, 1)
    weights = LossConfig(l1=2, mse=3, gradient=0.5, saturation=0.25, spread=0.3, rounding=0.1)
    terms, _ = losses(tokenizer, x, weights)
    y, _, latent = reconstruct(tokenizer, x)
    assert isinstance(tokenizer.quantizer, FSQ)
    bounded = tokenizer.quantizer.bounded(latent)
    error = y - x
    expected = {
        "l1": error.abs().mean(),
        "mse": (error**2).mean(),
        "gradient": error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean(),
        "saturation": ((latent.abs() - 1.5).clamp_min(0) ** 2).mean(),
        "spread": spread(bounded, tokenizer.quantizer.levels),
        "rounding": ((bounded - bounded.round()) ** 2).mean(),
    }
    for name, value in expected.items():
        assert float(terms[name]) == pytest.approx(float(value)), name
    total = sum(getattr(weights, name) * float(value) for name, value in expected.items())
    assert float(terms["loss"]) == pytest.approx(total, rel=1e-5)


def test_the_spread_is_smallest_for_levels_used_equally_and_independently() -> None:
    levels = torch.tensor([8, 5])
    even = torch.cartesian_prod(torch.linspace(-4, 3, 64), torch.linspace(-2, 2, 64))
    together = even[:64].clone()
    together[:, 0] = torch.linspace(-4, 3, 64)

    def of(channels: torch.Tensor) -> float:
        return float(spread(channels.T[None, :, :, None, None], levels))

    assert of(even) < 0.01
    assert of(together) > 0.4  # each channel is even, but one tells the other
    assert of(even * torch.tensor([1.0, 0.1])) > 0.1  # one level is used
    assert of(even + torch.tensor([2.0, 0.0])) > 0.1


def test_the_guide_separates_brightness_slopes_and_colours() -> None:
    ramp = torch.linspace(-0.3, 0.3, 8)
    grey = torch.zeros(1, 3, 5, 16, 24)
    assert torch.equal(guide(grey, 4, 8), torch.zeros(1, 8, 2, 2, 3))
    moving = {
        "light": (grey + 0.5, [0]),
        "across": (grey + ramp.repeat(3), [1]),
        "down": (grey + ramp.repeat(2)[:, None], [2]),
        "blue": (grey + torch.tensor([-0.1 / 3, -0.1 / 3, 0.5])[:, None, None, None], [3, 4]),
        "diagonal": (grey + (ramp[:, None] * ramp).repeat(2, 3), [5]),
    }
    for name, (x, channels) in moving.items():
        found = guide(x, 4, 8).abs().amax((0, 2, 3, 4))
        assert found.max() <= 1.5
        if name != "blue":
            assert (found > 0.1).nonzero().flatten().tolist() == channels, name
        else:  # which has some brightness too
            assert found[5:].max() < 1e-5 < 0.5 < found[3]
    late = grey.clone()
    late[:, :, 1:5] = torch.tensor([0.1, 0.2, 0.3, 0.4])[:, None, None]
    first, rest = guide(late, 4, 8)[0, 0, :, 0, 0]
    assert first == 0
    assert rest == guide(grey + 0.25, 4, 8)[0, 0, 0, 0, 0]


def test_a_loss_that_is_not_finite_ends_the_run_before_weights_change(config: Config) -> None:
    trainer = Trainer(config())
    trainer.tokenizer.get_parameter("decoder.conv_out.conv.bias").data.fill_(float("inf"))
    before = weights_of(trainer)
    with pytest.raises(FloatingPointError, match="step 0: loss"):
        trainer.train_step(NOISE)
    assert all(torch.equal(v, before[k]) for k, v in weights_of(trainer).items())


@pytest.mark.parametrize("name", ["log.jsonl", "training.pt", "tokenizer"])
def test_training_follows_no_link_in_its_folder(config: Config, tmp_path: Path, name: str) -> None:
    (tmp_path / "mine").write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "mine")
    with pytest.raises(ConfigError, match="is a link"):
        train(config())
    assert (tmp_path / "mine").read_text() == "kept"


def test_a_forged_state_is_one_error(config: Config) -> None:
    trainer = Trainer(config())
    forgeries: list[dict[str, Any]] = [
        *({"log_bytes": "x"}, {"log_bytes": -1}, {"config": "[" * 100_000}, {"config": 1}),
        *({"step": "x"}, {"step": -1}, {"average": {}}, {"weights": []}),
        *({"optimizer": {}}, {"optimizer": {"param_groups": [{}], "state": []}}),
    ]
    for forged in forgeries:
        with pytest.raises(ConfigError, match="theirs"):
            trainer.load(trainer.state() | forged, "theirs")
