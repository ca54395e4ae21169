from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tests.train.training_helpers import config, settings
from tokpipe.errors import ConfigError
from tokpipe.models.quantizers import FSQ
from tokpipe.models.tokenizers.native import build_native
from tokpipe.train.__main__ import main
from tokpipe.train.config import LossConfig, TrainConfig
from tokpipe.train.data import Ahead, TrainingData
from tokpipe.train.evaluate import open_checkpoint
from tokpipe.train.loop import LOG_NAME, STATE_NAME, Trainer, train
from tokpipe.train.reconstruction import guide, initialize, losses, reconstruct, scaled

SAMPLE = Path(__file__).parents[2] / "examples" / "data" / "bigbuckbunny.mp4"


def trainer(settings: TrainConfig) -> Trainer:
    torch.set_num_threads(1)
    return Trainer(settings, TrainingData(settings))


def lines(folder: Path) -> list[dict[str, Any]]:
    """The log, less what is of the clock."""
    found = [json.loads(line) for line in (folder / LOG_NAME).read_text().splitlines()]
    for line in found:
        assert line.pop("seconds_per_step") > 0
    return found


def test_the_loss_goes_down(tmp_path: Path) -> None:
    phases = [
        {
            "steps": 40,
            "size": 16,
            "batches": [{"frames": 1, "clips": 4}],
            "learning_rate": [0.002, 0.002],
        }
    ]
    run = trainer(config(tmp_path, phases=phases))
    values = [float(run.train_step()["mse"]) for _ in range(40)]
    assert np.mean(values[-10:]) < 0.5 * np.mean(values[:5])


def test_a_run_that_was_stopped_goes_on_as_if_it_was_not(tmp_path: Path) -> None:
    whole = config(tmp_path / "whole", checkpoint_every_s=1e9)
    train(whole)
    parts = config(tmp_path / "parts", checkpoint_every_s=1e-9)  # after every step
    with pytest.raises(KeyboardInterrupt):
        _interrupt(parts, after=3)
    assert train(parts) is not None
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    states = [
        torch.load(tmp_path / name / STATE_NAME, weights_only=True) for name in ("whole", "parts")
    ]
    for part in ("weights", "average"):
        for key, value in states[0][part].items():
            assert torch.equal(value, states[1][part][key]), key


def _interrupt(settings: TrainConfig, after: int) -> None:
    original = Trainer.train_step

    def stop(self: Trainer) -> dict[str, Any]:
        if self.step == after:
            raise KeyboardInterrupt
        return original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", stop)
        train(settings)


def test_a_run_told_to_stop_is_saved_after_the_step_at_hand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(settings(tmp_path / "out")))
    original = Trainer.train_step

    def terminated(self: Trainer) -> dict[str, Any]:
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", terminated)
        assert main([str(tmp_path / "train.yaml")]) == 1
    assert "goes on" in capsys.readouterr().err
    assert [line["step"] for line in lines(tmp_path / "out")] == [1, 2, 3]
    assert main([str(tmp_path / "train.yaml")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "tokenizer")
    assert [line["step"] for line in lines(tmp_path / "out")] == [1, 2, 3, 4, 5, 6]


def test_steps_that_a_kill_undid_are_logged_once(tmp_path: Path) -> None:
    run = config(tmp_path, checkpoint_every_s=1e-9)
    with pytest.raises(KeyboardInterrupt):
        _interrupt(run, after=2)
    log = tmp_path / LOG_NAME
    log.write_text(log.read_text() + '{"step": 5, "mse": 1}\n{"step": 6, "m')
    train(run)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    run = config(tmp_path)
    folder = train(run)
    assert folder is not None
    weights = folder / "model.safetensors"
    before = weights.read_bytes()
    assert train(run) == folder
    assert weights.read_bytes() == before
    assert len(lines(tmp_path)) == 6


def test_settings_that_the_done_steps_depend_on_cannot_change(tmp_path: Path) -> None:
    train(config(tmp_path))
    with pytest.raises(ConfigError, match=r"seed: 0 -> 1"):
        train(config(tmp_path, seed=1))
    phases = settings(tmp_path)["phases"]
    phases[0]["learning_rate"] = [0.002, 0.001]
    with pytest.raises(ConfigError, match=r"phases: of the 6 steps that are done"):
        train(config(tmp_path, phases=phases))


def test_phases_can_be_added_after_the_done_steps(tmp_path: Path) -> None:
    train(config(tmp_path))
    phases = settings(tmp_path)["phases"]
    phases.append({**phases[0], "steps": 2, "loss": {"l1": 0.5, "rounding": 0.1}})
    train(config(tmp_path, phases=phases))
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert "rounding" in lines(tmp_path)[-1]
    assert "rounding" not in lines(tmp_path)[0]


def test_a_batch_is_a_function_of_seed_and_step(tmp_path: Path) -> None:
    films = [{"path": str(SAMPLE), "size": [36, 64], "last_frame": 92}]
    first, again, other = (
        TrainingData(config(tmp_path, seed=seed, films=films)) for seed in (0, 0, 1)
    )
    late = first.batch(5)
    shapes = set()
    for step in range(5):  # in order here, and the last one first there
        assert torch.equal(first.batch(step), again.batch(step))
        assert not torch.equal(first.batch(step), first.batch(step + 1))
        shapes.add(first.batch(step).shape)
    assert torch.equal(again.batch(5), late)
    assert any(not torch.equal(first.batch(step), other.batch(step)) for step in range(3))
    assert shapes <= {(2, 1, 16, 16, 3), (1, 5, 16, 16, 3)}


def test_batches_made_ahead_are_those_made_in_time(tmp_path: Path) -> None:
    data = TrainingData(config(tmp_path))
    ahead = Ahead(data, threads=2)
    for step in (0, 1, 2, 4, 3, 5):
        assert torch.equal(ahead.batch(step), data.batch(step))
    with pytest.raises(ValueError, match="step 6 is past"):
        data.batch(6)
    ahead.close()
    train(config(tmp_path / "ahead", data_threads=2))
    train(config(tmp_path / "in_time"))
    assert lines(tmp_path / "ahead") == lines(tmp_path / "in_time")


def test_the_average_follows_the_weights_by_its_decay(tmp_path: Path) -> None:
    run = trainer(config(tmp_path, ema_decay=0.3))
    key = "encoder.conv_in.conv.weight"
    average = run.average[key].clone()
    decays = [0.1, 2 / 11, 0.25, 0.3, 0.3]  # (1 + n) / (10 + n), up to what was asked for
    for decay in decays:
        run.train_step()
        average = decay * average + (1 - decay) * run.tokenizer.state_dict()[key]
        torch.testing.assert_close(run.average[key], average)
    assert not torch.equal(run.average[key], run.tokenizer.state_dict()[key])


def test_what_is_kept_is_the_average_as_float16(tmp_path: Path) -> None:
    run = config(tmp_path)
    tokenizer = open_checkpoint(str(train(run)))
    average = torch.load(tmp_path / STATE_NAME, weights_only=True)["average"]
    kept = tokenizer.state_dict()
    assert kept.keys() == average.keys()
    for key, value in average.items():
        assert torch.equal(kept[key], value.half().float()), key


def test_the_start_is_a_function_of_the_seed_and_nearly_plain(tmp_path: Path) -> None:
    first, again, other = (
        build_native(config(tmp_path).tokenizer, None, with_decoder=True) for _ in range(3)
    )
    for tokenizer, seed in ((first, 0), (again, 0), (other, 1)):
        initialize(tokenizer, seed)
    key = "decoder.conv_in.conv.weight"
    assert torch.equal(first.state_dict()[key], again.state_dict()[key])
    assert not torch.equal(first.state_dict()[key], other.state_dict()[key])
    x = torch.randn(1, 32, 5, 8, 8)
    block = first.encoder.get_submodule("down.0.block.0")
    assert torch.equal(block(x), x)


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
def test_every_quantizer_is_trained_through(tmp_path: Path, quantizer: dict[str, Any]) -> None:
    tokenizer = settings(tmp_path)["tokenizer"] | {"quantizer": quantizer}
    run = trainer(config(tmp_path, tokenizer=tokenizer))
    before = {k: v.clone() for k, v in run.tokenizer.state_dict().items()}
    random_state = torch.get_rng_state()
    terms = [run.train_step() for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), random_state)
    assert terms[0]["quantizer"] != 0
    moved = {k for k, v in run.tokenizer.state_dict().items() if not torch.equal(v, before[k])}
    assert "encoder.conv_in.conv.weight" in moved
    assert any(key.startswith("quantizer.") for key in moved) == (quantizer["kind"] != "lfq")


def test_bfloat16_trains_float32_weights(tmp_path: Path) -> None:
    run = trainer(config(tmp_path, dtype="bfloat16"))
    exact = trainer(config(tmp_path))
    loss = [float(t.train_step()["loss"]) for t in (run, exact)]
    assert loss[0] != loss[1]
    assert loss[0] == pytest.approx(loss[1], rel=0.05)
    assert {value.dtype for value in run.tokenizer.state_dict().values()} == {torch.float32}


@torch.no_grad()
def test_losses_are_what_they_are_called(tmp_path: Path) -> None:
    run = trainer(config(tmp_path))
    x = scaled(run.batches.batch(0))
    assert x.shape[1] == 3
    assert -1 <= x.min() < x.max() <= 1
    weights = LossConfig(l1=2, mse=3, gradient=0.5, saturation=0.25, rounding=0.1)
    terms, _ = losses(run.tokenizer, x, weights)
    y, _, latent = reconstruct(run.tokenizer, x)
    assert float(terms["l1"]) == pytest.approx(float((y - x).abs().mean()))
    assert float(terms["mse"]) == pytest.approx(float(((y - x) ** 2).mean()))
    beyond = (latent.abs() - 1.5).clamp_min(0)
    assert float(terms["saturation"]) == pytest.approx(float((beyond**2).mean()))
    assert isinstance(run.tokenizer.quantizer, FSQ)
    bounded = run.tokenizer.quantizer.bounded(latent)
    assert float(terms["rounding"]) == pytest.approx(
        float(((bounded - bounded.round()) ** 2).mean())
    )
    names = ("l1", "mse", "gradient", "saturation", "rounding")
    summed = sum(getattr(weights, name) * float(terms[name]) for name in names)
    assert float(terms["loss"]) == pytest.approx(summed, rel=1e-5)


def test_the_guide_tells_light_slopes_and_colours_apart() -> None:
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
        if name != "blue":  # which is a little light as well
            assert (found > 0.1).nonzero().flatten().tolist() == channels, name
        else:
            assert found[3] > 0.5
            assert found[5:].max() < 1e-5
    late = grey.clone()
    late[:, :, 1:5] = torch.tensor([0.1, 0.2, 0.3, 0.4])[:, None, None]
    first, rest = guide(late, 4, 8)[0, 0, :, 0, 0]
    assert first == 0
    assert rest == guide(grey + 0.25, 4, 8)[0, 0, 0, 0, 0]


def test_a_loss_that_is_not_finite_ends_the_run_before_the_weights_are_touched(
    tmp_path: Path,
) -> None:
    run = trainer(config(tmp_path))
    run.tokenizer.get_parameter("decoder.conv_out.conv.bias").data.fill_(float("inf"))
    before = {k: v.clone() for k, v in run.tokenizer.state_dict().items()}
    with pytest.raises(FloatingPointError, match="step 0: loss"):
        run.train_step()
    assert all(torch.equal(v, before[k]) for k, v in run.tokenizer.state_dict().items())


def test_a_wrong_training_file_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.yaml").write_text("output: x\n")
    assert main([str(tmp_path / "train.yaml")]) == 2
    assert "tokenizer: Field required" in capsys.readouterr().err
