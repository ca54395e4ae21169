"""docs/tokenizers.md: its sections are valid, and its example ships and runs."""

from textwrap import indent
from typing import Any

import pytest
import torch
import yaml

from tests.models.adapter_helpers import noise
from tests.pages import REPOSITORY, blocks_of
from tokpipe.config import JobConfig, parse_job
from tokpipe.config.tokenizer import CustomConfig
from tokpipe.models.tokenizers import build_tokenizer

EXAMPLE = REPOSITORY / "examples/custom_tokenizer/grey_blocks.py"
JOB = yaml.safe_load((REPOSITORY / "tests/config/native_job.yaml").read_text())


def blocks(language: str) -> list[str]:
    page = blocks_of("docs/tokenizers.md")
    return [block.code for block in page if block.language == language]


def job_of(block: dict[str, Any]) -> JobConfig:
    def read(uri: str, options: object) -> bytes:
        assert uri == "s3://my-bucket/tokenizers/small/config.yaml"
        return yaml.safe_dump(JOB["tokenizer"]).encode()

    text = yaml.safe_dump({**JOB, **block})
    return parse_job(text, name="page", root=REPOSITORY, environ={}, read=read)


def test_every_section_on_the_page_is_valid() -> None:
    kinds = [job_of(yaml.safe_load(block)).tokenizer.kind for block in blocks("yaml")]
    assert kinds == [
        "native",
        "native",
        "vqgan",
        "vqgan",
        "vidtok",
        "emu3",
        "cosmos_dv",
        *["custom"] * 3,
    ]


def test_the_example_on_the_page_is_the_class_that_ships_and_it_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (code,) = blocks("python")
    for method in code.split("\n\n\n"):
        assert indent(method, "    ") in EXAMPLE.read_text()
    config = job_of(yaml.safe_load(blocks("yaml")[-3])).tokenizer
    assert isinstance(config, CustomConfig)
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    tokenizer = build_tokenizer(config, None, with_decoder=True)
    pixels = noise(1, 5, 16, 24, 3)
    codes = tokenizer.encode(pixels)
    assert codes.shape == (1, 5, 2, 3)
    grey = (pixels.float() @ torch.tensor([0.299, 0.587, 0.114]))[0, 2, 8:, 16:].mean()
    assert abs(int(codes[0, 2, 1, 2]) - float(grey) / 255 * 63) <= 0.51
    assert (tokenizer.decode(codes)[0, 2, 8:, 16:].float() - grey).abs().max() < 3
