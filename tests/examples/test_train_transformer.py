"""examples/train_transformer.py: its probabilities, its cache, and the whole script."""

import json
import math
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from examples import train_transformer
from examples.train_transformer import (
    Tokens,
    Transformer,
    batches_of,
    bits_per_code,
    generate,
    loss_of,
    stream_of,
    template_of,
    unigram_bits_per_code,
)
from tests.end_to_end.jobs import SAMPLE, run_without_ray
from tests.pages import REPOSITORY
from tokpipe.config import load_job
from tokpipe.config.load import parse_job
from tokpipe.reader import ClipStream, CodeCache, open_output
from tokpipe.reader.compose import Template, Vocabulary

TABLE = """\
uri,start,end,caption,split
video.mp4,0,0.36,a rabbit crawls,train
video.mp4,0.68,1.04,a rabbit climbs out,test
video.mp4,1.36,1.72,a rabbit stands up,train
video.mp4,2.72,3.08,a rabbit yawns,train
"""
SHAPE = (3, 4, 4)
"""Of the codes of each clip: 9 frames of 32x32 pixels."""
LEVELS = (8, 8, 8, 5, 5, 5)


def tokenized(root: Path, source: dict[str, str]) -> Path:
    """Tokenize the sample film with small frames, and return the output."""
    shutil.copy(SAMPLE, root / "video.mp4")
    settings = {
        "dataset": "film",
        "sources": [source],
        "output": {"uri": "out"},
        "sampling": {"fps": 25, "max_clip_frames": 9},
        "frames": {"size": [32, 32]},
        "tokenizer": {"checkpoint": "builtin://fsq-4x8x8"},
        "chunking": {"chunk_frames": 9},
        "encode": {"device": "cpu"},
    }
    run_without_ray(parse_job(json.dumps(settings), name="job.yaml", root=root, environ={}))
    return root / "out"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output with captions."""
    root = tmp_path_factory.mktemp("film")
    (root / "clips.csv").write_text(TABLE)
    columns = {"uri_column": "uri", "start_column": "start", "end_column": "end"}
    return tokenized(root, {"kind": "table", "uri": "clips.csv", **columns})


@pytest.fixture
def stream(out: Path, tmp_path: Path) -> ClipStream:
    return stream_of(CodeCache(open_output(str(out)), tmp_path / "codes"), "train")


@pytest.fixture
def template(stream: ClipStream, tmp_path: Path) -> Template:
    captions = sorted(sample["caption"] for sample in stream)
    return template_of(captions, stream.tokenizer.codebook_size, tmp_path / "tokenizer.json")


@pytest.fixture
def model(template: Template) -> Transformer:
    torch.manual_seed(0)
    return Transformer(Tokens(template.vocabulary, LEVELS), SHAPE).eval()


@pytest.fixture
def strong(model: Transformer) -> Transformer:
    """With larger weights than before training, so that attention matters, in float64."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4)
    return model.double()


def batch_of(template: Template, *captions: str) -> dict[str, Tensor]:
    """One sequence with a clip of zeros for each caption."""
    found = [template.compose(np.zeros(SHAPE, int), {"caption": caption}) for caption in captions]
    batch = {
        name: torch.from_numpy(np.concatenate([getattr(one, name) for one in found]))[None]
        for name in ("tokens", "positions", "loss")
    }
    sizes = [len(one.tokens) for one in found]
    batch["documents"] = torch.arange(len(found)).repeat_interleave(torch.tensor(sizes))[None]
    return batch


def test_the_loss_starts_at_the_logarithm_of_the_vocabulary(
    stream: ClipStream, template: Template, model: Transformer
) -> None:
    loss = loss_of(model, next(batches_of(stream, 100, template))).mean().item()
    assert loss == pytest.approx(math.log(template.vocabulary.size), rel=0.02)


def test_the_probabilities_of_all_tokens_add_up_to_one() -> None:
    torch.manual_seed(0)
    tokens = Tokens(Vocabulary([{"size": 30, "offset": 7}]), (2, 3, 5)).double()
    hidden = 30 * torch.randn(train_transformer.WIDTH, dtype=torch.float64)
    loss = tokens.loss(hidden.expand(37, -1), torch.arange(37))
    assert loss.std() > 1
    assert (-loss).exp().sum().item() == pytest.approx(1)
    embedded = tokens(torch.arange(7, 37))
    # Code 7 is 1 + 2 * 0 + 6 * 1: it differs from code 6 in the first digit, as 1 does from 0.
    torch.testing.assert_close(embedded[7] - embedded[6], embedded[1] - embedded[0])


def test_codes_are_drawn_as_likely_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_transformer, "TEMPERATURE", 1)
    torch.manual_seed(0)
    tokens = Tokens(Vocabulary([{"size": 6, "offset": 1}]), (2, 3)).double()
    hidden = 5 * torch.randn(train_transformer.WIDTH, dtype=torch.float64)
    drawn = [tokens.draw(hidden, torch.default_generator) for _ in range(4000)]
    chances = (-tokens.loss(hidden.expand(6, -1), torch.arange(1, 7))).exp()
    found = torch.bincount(torch.tensor(drawn), minlength=7)[1:] / 4000
    torch.testing.assert_close(found.double(), chances / chances.sum(), atol=0.04, rtol=0)


def test_each_code_depends_on_its_own_caption_and_on_no_other_clip(
    template: Template, strong: Transformer
) -> None:
    first, second = (batch_of(template, text) for text in ("a rabbit yawns", "a dog"))
    both = loss_of(strong, batch_of(template, "a rabbit yawns", "a dog"))
    alone = [loss_of(strong, one) for one in (first, second)]
    torch.testing.assert_close(both, torch.cat(alone))
    assert (alone[0] - alone[1]).abs().min() > 1e-4, "the caption does not matter"


def test_generating_with_the_cache_draws_what_the_whole_sequence_does(
    template: Template, strong: Transformer
) -> None:
    tokens = generate(strong, template, "a rabbit yawns", SHAPE, seed=1)
    generator, again = torch.Generator().manual_seed(1), torch.from_numpy(tokens.copy())
    positions = batch_of(template, "a rabbit yawns")["positions"]
    places = strong.tokens.is_code(again).nonzero()[:, 0].tolist()
    again[places] = 0
    for place in places:
        mask = torch.ones(place, place, dtype=torch.bool).tril()[None, None]
        hidden, _ = strong(again[None, :place], positions[:, : place + 1], mask)
        again[place] = strong.tokens.draw(hidden[0, -1], generator)
    np.testing.assert_array_equal(again.numpy(), tokens)
    parsed = template.parse(tokens)
    assert parsed.codes.shape == SHAPE
    assert parsed.values == {"caption": "a rabbit yawns"}
    other = template.parse(generate(strong, template, "a dog", SHAPE, seed=1))
    assert (other.codes != parsed.codes).any()


def test_the_unigram_model_knows_only_how_often_codes_occur() -> None:
    def sample(*codes: int) -> dict[str, object]:
        return {"codes": np.array(codes).reshape(-1, 1, 1)}

    half = unigram_bits_per_code([sample(0, 1), sample(0, 1)], [sample(1, 1, 0)], 4)
    assert half == pytest.approx(1, abs=1e-4)
    # Only code 3 is asked for, which never occurs: the best is to assume that all are equal.
    assert unigram_bits_per_code([sample(0, 1)], [sample(3)], 4) == pytest.approx(2, abs=0.1)


def test_bits_count_codes_alone(stream: ClipStream, template: Template, model: Transformer) -> None:
    bits = bits_per_code(model, template, stream)
    assert bits == pytest.approx(math.log2(template.vocabulary.size), rel=0.02)


def run(
    out: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    *options: str,
) -> str:  # fmt: skip
    words = [str(out), "-o", str(folder / "generated.mp4"), "--cache", str(folder / "codes")]
    monkeypatch.setattr(sys, "argv", ["train_transformer.py", *words, *options])
    train_transformer.main()
    return capsys.readouterr().out


def measured(printed: str) -> tuple[float, float]:
    """Bits per code of the model, and of the unigram model."""
    found = re.search(r"clips: (\S+) bits per code; a unigram model needs (\S+)", printed)
    assert found is not None, printed
    return float(found[1]), float(found[2])


def test_it_learns_and_generates_a_clip_for_a_caption(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--steps", "51", "--caption", "a rabbit in a tree")
    printed = run(out, tmp_path, monkeypatch, capsys, *options)
    losses = [float(loss) for loss in re.findall(r"step \d+: loss (\d+\.\d+)", printed)]
    expected = re.search(r"ln\(\d+\) = (\d+\.\d+)", printed)
    assert expected is not None
    assert losses[0] == pytest.approx(float(expected[1]), rel=0.02)
    assert losses[0] - 1 > losses[1] > losses[2]
    assert "3 clips to train on" in printed
    assert all(0 < bits < 17 for bits in measured(printed))
    assert f"generated {math.prod(SHAPE)} codes" in printed
    assert "its caption: a rabbit in a tree" in printed
    assert (tmp_path / "generated.mp4").stat().st_size > 1000
    again = run(out, tmp_path, monkeypatch, capsys, *options)
    assert re.sub(r"[\d,]+ per second", "", again) == re.sub(r"[\d,]+ per second", "", printed)


@pytest.mark.slow
def test_the_captions_and_codes_of_the_demo_teach_more_than_how_often_codes_occur(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = load_job(REPOSITORY / "jobs/demo.yaml")
    output = job.output.model_copy(update={"uri": str(tmp_path / "out")})
    encode = job.encode.model_copy(update={"device": "cpu"})
    run_without_ray(job.model_copy(update={"output": output, "encode": encode}))
    bits, unigram = measured(run(tmp_path / "out", tmp_path, monkeypatch, capsys))
    assert bits < unigram - 1


def test_a_wrong_path_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path / "nowhere", tmp_path, monkeypatch, capsys)
    assert str(tmp_path / "nowhere") in capsys.readouterr().err


def test_an_output_without_captions_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tokenized(tmp_path, {"kind": "files", "uri": "video.mp4"})
    with pytest.raises(SystemExit):
        run(out, tmp_path, monkeypatch, capsys)
    assert "has no column 'caption'" in capsys.readouterr().err
