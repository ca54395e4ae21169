"""The site loads nothing from elsewhere; building it checks its links and its navigation."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from infra.mkdocs_hook import web_address
from tests.pages import REPOSITORY
from tests.report.test_report_in_browser import CHROMIUM, FLAGS

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


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    origin = ("remote.origin.url", "git@git.example.org:video/tokpipe.git")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "NO_MKDOCS_2_WARNING": "1",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": origin[0],
            "GIT_CONFIG_VALUE_0": origin[1],
        },
        check=True,
    )
    return folder


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    loaded = [link for page in site.rglob("*.html") for link in Page(page).loads]
    assert loaded
    assert not [link for link in loaded if ELSEWHERE.match(link)]
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", style.read_text())


def test_each_page_is_once_in_the_navigation(site: Path) -> None:
    links = re.findall(r'<a href="([^"#]+)" class="md-nav__link', (site / "index.html").read_text())
    assert len(links) > 15
    assert len(links) == len(set(links))


def test_the_repository_is_linked(site: Path) -> None:
    page = (site / "quickstart.html").read_text()
    assert '<a href="https://git.example.org/video/tokpipe"' in page
    assert 'data-md-component="source"' not in page, "the theme would ask that host for its stars"


@pytest.mark.parametrize(
    ("origin", "page"),
    [
        ("https://git.example.org/video/tokpipe.git", "https://git.example.org/video/tokpipe"),
        ("https://me:secret@git.example.org/tokpipe", "https://git.example.org/tokpipe"),
        ("ssh://git@git.example.org:22/video/tokpipe.git", "https://git.example.org/video/tokpipe"),
        ("git@git.example.org:video/group/tokpipe.git", "https://git.example.org/video/group/tokpipe"),
        ("/srv/git/tokpipe.git", None),
        ("../tokpipe", None),
        ("file:///srv/git/tokpipe.git", None),
        ("", None),
    ],
)  # fmt: skip
def test_the_page_of_a_repository(origin: str, page: str | None) -> None:
    assert web_address(origin) == page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs chromium, which is not installed")
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


TOO_WIDE = """() => {
  const room = document.documentElement.clientWidth;
  const wide = (one) => one.getBoundingClientRect().right > room + 1 && !one.closest(
    ".md-typeset__scrollwrap, pre > code, .md-sidebar, .md-search, .md-dialog, .md-header");
  const found = [...document.querySelectorAll("article *")].filter(wide);
  if (document.documentElement.scrollWidth > room) found.unshift(document.body);
  return found.map((one) => one.tagName + ": " + one.textContent.slice(0, 80));
}"""
"""What sticks out of the window; tables and code scroll in their boxes."""
SCROLLING_CODE = """[...document.querySelectorAll("pre > code")]
  .filter((one) => one.scrollWidth > one.clientWidth + 1).map((one) => one.textContent)"""
BROKEN_WORDS = """[...document.querySelectorAll("article code.word")]
  .filter((one) => one.getClientRects().length > 1).map((one) => one.textContent)"""


@pytest.mark.parametrize("width", [1280, 390])
def test_code_stays_in_its_box_and_paths_stay_whole(
    browser: Browser, site: Path, width: int
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    paths = sorted(site.glob("*.html")) + sorted((site / "project").glob("*.html"))
    assert len(paths) > 15
    for path in paths:
        page.goto(path.as_uri())
        assert page.evaluate(TOO_WIDE) == [], path.name
        assert page.evaluate(BROKEN_WORDS) == [], path.name
        if width == 1280:  # wide enough for any line of code
            assert page.evaluate(SCROLLING_CODE) == [], path.name
    page.close()


def test_the_search_works_without_a_server(browser: Browser, site: Path) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto((site / "quickstart.html").as_uri())
    page.get_by_role("textbox", name="Search").press_sequentially("retry-rejected")
    found = page.locator(".md-search-result__link").first
    found.wait_for(timeout=600_000)
    assert (found.get_attribute("href") or "").partition("#")[0].endswith(".html")
    assert page.locator(".md-search-result__item").count() > 2
    page.close()
