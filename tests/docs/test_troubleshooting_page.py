"""docs/troubleshooting.md quotes real messages, and explains every exit code and reason."""

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
from tokpipe.cli.jobs import TOO_MANY_REJECTED
from tokpipe.types import REMOVED

PAGE = (REPOSITORY / "docs/troubleshooting.md").read_text()
PACKAGE = Path(tokpipe.__file__).parent
RAY = ("_private/utils.py", "_private/authentication/authentication_constants.py")
"""Sources of Ray's messages that the page quotes."""
REJECTING_CALLS = {
    "SourceError",
    "Rejected",
    "Failed",
    "_Lost",
    "_rejected",
    "_suspect",
    "_blame_worker_loss",
    "kind",
}
"""Calls with a reason as an argument. ``kind`` is one of the classes."""


def quoted() -> list[str]:
    """Messages: quotations that are one span of code."""
    tokens = MarkdownIt("commonmark").parse(PAGE)
    return [
        tokens[index + 2].content.strip("`")
        for index, token in enumerate(tokens)
        if token.type == "blockquote_open"
    ]


def texts_of(path: Path) -> Iterator[str]:
    """Every text in a file, with ``…`` for each value that is filled in."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                part.value if isinstance(part, ast.Constant) else "…"  # type: ignore[misc]
                for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"%[sd]", "…", node.value)


def all_texts() -> set[str]:
    ray = find_spec("ray")
    assert ray is not None
    assert ray.origin is not None
    paths = [*PACKAGE.rglob("*.py"), *(Path(ray.origin).parent / name for name in RAY)]
    return {text for path in paths for text in texts_of(path)}


def test_every_message_on_the_page_is_one_that_is_printed() -> None:
    known = {as_one(text) for text in all_texts()}
    messages = quoted()
    assert len(messages) > 30
    assert not [one for one in messages if not any(as_one(one) in text for text in known)]


def as_one(text: str) -> str:
    """Join values with hardly anything between them: to a reader they are one."""
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


def words_of(call: ast.Call) -> Iterator[str]:
    """The words among the arguments of a call, including both sides of a conditional."""
    for value in [*call.args, *(one.value for one in call.keywords if one.arg == "reason")]:
        for one in [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]:
            if isinstance(one, ast.Constant) and re.fullmatch("[a-z_]+", str(one.value)):
                yield str(one.value)


def reasons() -> set[str]:
    """Every reason for rejecting a clip in the source of the package."""
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        if "bench" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = getattr(node.func, "id", getattr(node.func, "attr", ""))
                found |= set(words_of(node)) if called in REJECTING_CALLS else set()
    # Some calls name the stage, too.
    return found - {"plan", "decode", "encode", "remove"} | {REMOVED}


def test_every_reason_has_a_row_and_every_row_a_reason() -> None:
    table = PAGE.partition("\n## Rejected clips\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert set(rows) == reasons()
