"""Runs docs/sequences.md, block by block."""

from pathlib import Path
from typing import Any

import pytest

from tests.pages import blocks_of
from tests.reader.reader_encodings import write_output
from tokpipe.reader.compose.grammar import KINDS
from tokpipe.reader.compose.template import PRESETS

PAGE = Path("docs/sequences.md")


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # by torchdata
def test_the_blocks_of_the_page_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_output(tmp_path / "out/demo")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks_of("docs/sequences.md"):
        exec(compile(block.code, str(block), "exec"), names)
    tokens = names["tokens"]
    assert tokens.shape == (4, 8192)
    special = names["template"].vocabulary.special
    assert (tokens == special["eof"]).any()
    assert names["document"].loss.sum() == (names["document"].tokens >= special["eol"]).sum()


def test_the_page_has_every_preset_and_kind_of_field() -> None:
    text = (Path(__file__).parents[2] / PAGE).read_text()
    assert all(f"| `{preset}` |" in text for preset in PRESETS)
    assert all(f":{kind}`" in text for kind in KINDS if kind != "text")
