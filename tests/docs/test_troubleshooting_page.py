"""docs/troubleshooting.md quotes what the program says, and leaves no ending unexplained."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

import tokpipe
from tests.pages import REPOSITORY
from tokpipe import errors
from tokpipe.cli.run import TOO_MANY_REJECTED

PAGE = (REPOSITORY / "docs/troubleshooting.md").read_text()
PACKAGE = Path(tokpipe.__file__).parent
RAY = ("_private/utils.py", "_private/authentication/authentication_constants.py")
"""Where Ray's own words come from that the page quotes."""
REFUSALS = {
    "SourceError",
    "Undecodable",
    "Rejected",
    "Failed",
    "_Lost",
    "_rejected",
    "_suspect",
    "_blame_worker_loss",
}
"""Calls that give a reason, by position or by name."""


def quoted() -> list[str]:
    """Messages: quotations that are one span of code."""
    tokens = MarkdownIt("commonmark").parse(PAGE)
    return [
        tokens[index + 2].content.strip("`")
        for index, token in enumerate(tokens)
        if token.type == "blockquote_open"
    ]


def told(path: Path) -> Iterator[str]:
    """Every text in a file, with ``…`` for each value that it is filled with."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                part.value if isinstance(part, ast.Constant) else "…"  # type: ignore[misc]
                for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"%[sd]", "…", node.value)


def everything_told() -> set[str]:
    ray = find_spec("ray")
    assert ray is not None
    assert ray.origin is not None
    paths = [*PACKAGE.rglob("*.py"), *(Path(ray.origin).parent / name for name in RAY)]
    return {text for path in paths for text in told(path)}


def test_every_message_on_the_page_is_one_that_is_printed() -> None:
    known = {as_one(text) for text in everything_told()}
    messages = quoted()
    assert len(messages) > 30
    assert not [one for one in messages if not any(as_one(one) in text for text in known)]


def as_one(text: str) -> str:
    """Values with hardly anything between them are one value to a reader."""
    return re.sub(r"…(.{0,6}…)+", "…", text)


def exit_codes() -> set[int]:
    raised = {
        one.exit_code
        for one in vars(errors).values()
        if isinstance(one, type) and issubclass(one, errors.TokpipeError)
    }
    return raised | {0, TOO_MANY_REJECTED}


@pytest.mark.parametrize("code", sorted(exit_codes()))
def test_every_exit_code_has_a_row(code: int) -> None:
    assert re.search(rf"^\| {code} \|", PAGE, re.MULTILINE)
    assert code == 0 or re.search(rf"^## Exit code {code}: ", PAGE, re.MULTILINE)


def words_given(call: ast.Call) -> Iterator[str]:
    """The words that a call is given by position or as its reason, both sides of a choice."""
    for value in [*call.args, *(one.value for one in call.keywords if one.arg == "reason")]:
        for one in [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]:
            if isinstance(one, ast.Constant) and re.fullmatch("[a-z_]+", str(one.value)):
                yield str(one.value)


def reasons() -> set[str]:
    """Every reason that the program rejects a clip for, as its source has them."""
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        if "bench" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = getattr(node.func, "id", getattr(node.func, "attr", ""))
                found |= set(words_given(node)) if called in REFUSALS else set()
    return found - {"plan", "decode", "encode"}  # the stages, which stand beside some of them


def test_every_reason_has_a_row_and_every_row_a_reason() -> None:
    table = PAGE.partition("\n## Rejected clips\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert set(rows) == reasons()
