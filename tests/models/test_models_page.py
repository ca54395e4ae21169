"""docs/models.md: every name on it exists, and its code runs."""

import re
from typing import Any

import tokpipe.models
from tests.pages import REPOSITORY, blocks_of

PAGE = (REPOSITORY / "docs/models.md").read_text()


def test_the_code_on_the_page_runs() -> None:
    blocks = [block for block in blocks_of("docs/models.md") if block.language == "python"]
    assert len(blocks) == 4
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block.code, str(block), "exec"), names)


def test_every_module_on_the_page_can_be_imported() -> None:
    rows = [line.split("|")[1:3] for line in PAGE.splitlines() if line.startswith("| `")]
    for published, here in rows:
        for name in re.findall(r"`(\w+)", published if "the same" in here else here):
            assert name in tokpipe.models.__all__
