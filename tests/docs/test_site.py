"""The site loads nothing from elsewhere; building it checks its links and its navigation."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

from tests.pages import REPOSITORY

ELSEWHERE = re.compile(r"^\s*(?:https?:)?//")
LOADED = {("link", "href"), *((tag, "src") for tag in ("script", "img", "iframe", "source"))}


class Page(HTMLParser):
    """What a page loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if (tag, name) in LOADED]


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path],
        cwd=REPOSITORY,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        check=True,
    )
    loaded = [link for page in tmp_path.rglob("*.html") for link in Page(page).loads]
    assert loaded
    assert not [link for link in loaded if ELSEWHERE.match(link)]
    for style in tmp_path.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", style.read_text())
