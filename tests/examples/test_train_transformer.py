"""examples/train_transformer.py: its loss, its cache, and the whole script."""

import math
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from examples import train_transformer
from examples.train_transformer import Transformer, Vocabulary, batches_of, loss_of, sequences_of
from tests.report.report_outputs import really_made
from tokpipe.reader import open_output


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output with the codes of the sample film, in small frames."""
    return really_made(tmp_path_factory.mktemp("film"))


@pytest.fixture
def model(out: Path, tmp_path: Path) -> tuple[Transformer, Vocabulary]:
    torch.manual_seed(0)
    vocabulary = Vocabulary(sequences_of(open_output(str(out)), tmp_path))
    return Transformer(vocabulary).eval(), vocabulary


def test_the_loss_starts_at_the_logarithm_of_the_vocabulary(
    out: Path, tmp_path: Path, model: tuple[Transformer, Vocabulary]
) -> None:
    transformer, vocabulary = model
    batch = next(batches_of(sequences_of(open_output(str(out)), tmp_path)))
    loss = loss_of(transformer, vocabulary, batch).item()
    assert loss == pytest.approx(math.log(len(vocabulary)), rel=0.02)


@pytest.mark.parametrize("length", [64, 10], ids=["all fit", "old ones are dropped"])
def test_generating_with_the_cache_sees_what_training_sees(
    model: tuple[Transformer, Vocabulary], length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_transformer, "LENGTH", length)
    transformer, vocabulary = model
    transformer.double()
    with torch.no_grad():
        for weight in transformer.parameters():  # larger weights, so that attention matters
            weight.mul_(4)
        tokens = torch.randint(len(vocabulary) - 2, (1, 40))
        positions = torch.stack([torch.randint(n, (1, 40)) for n in vocabulary.sides], dim=2)
        seen = torch.ones(40, 40, dtype=torch.bool).tril().triu(1 - length)
        whole, _ = transformer(tokens, positions, seen)
        caches, steps = None, list[Tensor]()
        for i in range(40):
            here = slice(i, i + 1)
            logits, caches = transformer(tokens[:, here], positions[:, here], None, caches)
            steps.append(logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole)
    assert caches is not None
    assert caches[0][0].shape[2] == min(length, 40)


def test_it_learns_and_generates_a_clip(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    video = tmp_path / "generated.mp4"
    options = ["-o", str(video), "--steps", "41", "--cache", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["train_transformer.py", str(out), *options])
    train_transformer.main()
    printed = capsys.readouterr().out
    losses = [float(loss) for loss in re.findall(r"step \d+: loss (\d+\.\d+)", printed)]
    expected = re.search(r"ln\([\d,]+\) = (\d+\.\d+)", printed)
    assert expected is not None
    assert losses[0] == pytest.approx(float(expected[1]), rel=0.02)
    assert losses[0] - 1 > losses[1] > losses[2]
    first = next(open_output(str(out)).clips())  # which one that is depends on its path
    assert f"generated {first.chunks[0].codes.size} codes" in printed
    assert video.stat().st_size > 1000


def test_a_wrong_path_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train_transformer.py", str(tmp_path), "-o", "x.mp4"])
    with pytest.raises(SystemExit):
        train_transformer.main()
    assert str(tmp_path) in capsys.readouterr().err
