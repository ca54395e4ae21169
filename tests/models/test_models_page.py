"""The page on models: every name on it exists, and its code runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import tokpipe.models

PAGE = (Path(__file__).parents[2] / "docs/models.md").read_text()


def test_the_code_on_the_page_runs() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/models.md", "exec"), names)


def test_every_module_on_the_page_can_be_imported() -> None:
    rows = [line.split("|")[1:3] for line in PAGE.splitlines() if line.startswith("| `")]
    for published, here in rows:
        for name in re.findall(r"`(\w+)", published if "the same" in here else here):
            assert name in tokpipe.models.__all__
