"""The site, built as ``make docs`` builds it: whole, and sufficient to itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from tests.pages import REPOSITORY

ELSEWHERE = re.compile(r"^\s*(?:https?:)?//")
LOADED = {("link", "href"), *((tag, "src") for tag in ("script", "img", "iframe", "source"))}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=REPOSITORY,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        check=True,
    )
    return folder


class Page(HTMLParser):
    """What a page loads, what it links to, and its ids."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if (tag, name) in LOADED:
                self.loads.append(value or "")
            elif (tag, name) == ("a", "href"):
                self.links.append(value or "")
            elif name == "id":
                self.ids.add(value or "")


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    loaded = [link for page in site.rglob("*.html") for link in Page(page).loads]
    assert loaded
    assert not [link for link in loaded if ELSEWHERE.match(link)]
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", style.read_text())


def test_every_link_of_the_site_leads_somewhere(site: Path) -> None:
    pages = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    for path, page in pages.items():
        for link in page.links:
            if re.match(r"[a-z]+:", link):
                continue
            name, _, anchor = link.partition("#")
            target = (path.parent / name).resolve() if name else path
            if target.is_dir():
                target /= "index.html"
            assert target in pages, f"{path.relative_to(site)}: {link}"
            assert not anchor or anchor in pages[target].ids, f"{path.relative_to(site)}: {link}"


def entries(nav: object) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, list | dict):
        for inner in nav.values() if isinstance(nav, dict) else nav:
            yield from entries(inner)


def test_every_page_in_docs_is_in_the_navigation() -> None:
    # The one tag that plain YAML does not know is that of the headings' anchors.
    text = re.sub(r"!!python/\S+", "", (REPOSITORY / "mkdocs.yml").read_text())
    listed = set(entries(yaml.safe_load(text)["nav"]))
    assert {path.name for path in (REPOSITORY / "docs").glob("*.md")} <= listed
