"""Links from page to page: the file exists, and so does the heading."""

import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from pymdownx.slugs import slugify

from tests.pages import REPOSITORY, name_of, pages

SLUG = slugify(case="lower")  # as mkdocs.yml has it, and as code hosts make them


def tokens_of(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text())


@cache
def anchors_of(page: Path) -> frozenset[str]:
    tokens = tokens_of(page)
    found: list[str] = []
    for heading, content in pairwise(tokens):
        if heading.type == "heading_open":
            text = "".join(part.content for part in content.children or [])
            found.append(SLUG(text, "-"))
    return frozenset(found)


def links_of(page: Path) -> list[str]:
    return [
        str(part.attrs.get("href") or part.attrs.get("src"))
        for token in tokens_of(page)
        for part in token.children or []
        if part.type in ("link_open", "image")
    ]


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_every_link_has_a_target(page: Path) -> None:
    for link in links_of(page):
        if re.match("https?://", link):
            continue  # not checked: tests need no network
        assert not re.match("[a-z]+:|/", link), f"{link} works only on this machine"
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"there is no {path}"
        assert target.is_relative_to(REPOSITORY)
        if anchor:
            assert anchor in anchors_of(target), f"{path or 'the page'} has no heading #{anchor}"


def test_every_page_in_docs_can_be_reached_from_the_first_two() -> None:
    reached: set[Path] = set()
    waiting = [REPOSITORY / "README.md", REPOSITORY / "docs/quickstart.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        for link in links_of(page):
            target = (page.parent / link.partition("#")[0]).resolve()
            if target.suffix == ".md" and target.exists() and target not in reached:
                waiting.append(target)
    assert not {*(REPOSITORY / "docs").glob("*.md")} - reached
