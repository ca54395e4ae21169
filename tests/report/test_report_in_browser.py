"""The report in a real browser: themes, keyboard, small screens, accessibility, requests."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Request, sync_playwright

from tests.report.report_outputs import with_history
from tokpipe.reader.output import Output
from tokpipe.report.write import WrittenReport

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}
FOCUSABLE = "a[href], button, summary, [tabindex='0']"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, which is not installed")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


class Watched:
    """A page, its requests, and its messages on the console."""

    def __init__(self, page: Page, path: Path) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.goto(path.as_uri())

    def fetched(self) -> list[str]:
        return [url for url in self.requests if not url.startswith("data:")]


def background(page: Page) -> str:
    return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))


def problems(page: Page) -> list[str]:
    """Violations that axe finds: contrast, names, structure, keyboard access."""
    found = Axe().run(page, options=RULES).response["violations"]
    return [f"{one['id']}: {node['html']}" for one in found for node in one["nodes"]]


LIGHT, DARK = "rgb(251, 251, 249)", "rgb(20, 23, 26)"
SCREENS = [(360, "light", LIGHT), (1280, "dark", DARK)]


@pytest.mark.parametrize(("width", "scheme", "colour"), SCREENS)
def test_it_is_accessible_in_both_themes_on_any_screen(
    browser: Browser, real_report: WrittenReport, width: int, scheme: Any, colour: str
) -> None:
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})
    watched = Watched(page, real_report.path)
    assert background(page) == colour
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every(one => one.naturalWidth > 0)")
    assert watched.fetched() == [real_report.path.as_uri()]
    assert watched.complaints == []
    assert problems(page) == []
    page.close()


def test_everything_works_with_the_keyboard(browser: Browser, real_report: WrittenReport) -> None:
    page = browser.new_page()
    page.goto(real_report.path.as_uri())
    page.keyboard.press("Tab")
    focused = "document.activeElement"
    assert page.evaluate(f"{focused}.textContent") == "Skip to the report"
    assert page.evaluate(f"{focused}.getBoundingClientRect().top") >= 0
    page.keyboard.press("Enter")
    assert page.evaluate(f"{focused}.id") == "report"
    page.goto(real_report.path.as_uri())  # start again from the top
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    wanted = page.evaluate(f'document.querySelectorAll("{FOCUSABLE}").length')
    assert wanted > 15
    reached = set()
    for _ in range(wanted):
        page.keyboard.press("Tab")
        assert page.evaluate(f"getComputedStyle({focused}).outlineStyle") == "solid"
        find = f'[...document.querySelectorAll("{FOCUSABLE}")].indexOf({focused})'
        reached.add(page.evaluate(find))
    assert reached == set(range(wanted))
    page.reload()
    page.locator("summary").first.focus()
    for is_open in (True, False):
        page.keyboard.press("Enter")
        assert page.evaluate(f"{focused}.parentElement.open") == is_open
    page.close()


def test_text_from_an_output_never_runs(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    WrittenReport(Output(with_history()), path, num_pairs=1)
    page = browser.new_page()
    watched = Watched(page, path)
    assert page.title() == "demo: tokpipe report"
    assert page.get_by_text('document.title = "broken"').count() > 0
    assert watched.fetched() == [path.as_uri()]
    assert watched.complaints == []
    blocked: list[Request] = []
    page.on("requestfailed", lambda request: blocked.append(request))
    # Even if something slipped through, the policy would not let it run or fetch.
    page.evaluate(
        """document.body.insertAdjacentHTML("beforeend",
        '<img src="missing.png" onerror="document.title = \\'broken\\'"><style>h1 {color: red}')"""
    )
    page.wait_for_timeout(100)
    assert page.title() == "demo: tokpipe report"
    assert [request.failure for request in blocked] == ["csp"]
    assert page.evaluate("getComputedStyle(document.querySelector('h1')).color") != "rgb(255, 0, 0)"
    page.close()


def test_it_is_complete_without_javascript(browser: Browser, real_report: WrittenReport) -> None:
    context = browser.new_context(java_script_enabled=False, color_scheme="dark")
    page = context.new_page()
    page.goto(real_report.path.as_uri())
    assert page.get_by_role("heading", level=2).count() == 6
    page.locator("summary").first.click()
    assert page.get_by_role("table").first.is_visible()
    context.close()
