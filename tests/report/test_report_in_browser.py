"""The report in a real browser: both themes, the keyboard, small screens, and no request."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.report.test_report import store  # noqa: F401  # a fixture
from tokpipe.reader.output import Output
from tokpipe.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
LOWEST_CONTRAST = """() => {
  const parts = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = node => {
    for (; node; node = node.parentElement) {
      const colour = parts(getComputedStyle(node).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  let lowest = [99, ""];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || ["SCRIPT", "STYLE"].includes(node.tagName)) continue;
    const style = getComputedStyle(node);
    const ink = light(parts(node instanceof SVGElement ? style.fill : style.color));
    const paper = light(behind(node));
    const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    if (ratio < lowest[0]) lowest = [ratio, node.outerHTML.slice(0, 80)];
  }
  return lowest;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page_uri(store: object, tmp_path: Path) -> str:  # noqa: F811
    write_report(Output(store), tmp_path / "report.html", num_shards=0, num_pairs=0)  # type: ignore[arg-type]
    return (tmp_path / "report.html").as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_is_readable_in_both_themes_on_any_screen(
    browser: object, page_uri: str, scheme: str, width: int
) -> None:
    page = browser.new_page(  # type: ignore[attr-defined]
        color_scheme=scheme, viewport={"width": width, "height": 800}
    )
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(page_uri)
    assert requests == [page_uri]
    assert complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"
    assert dark == (scheme == "dark")
    ratio, where = page.evaluate(LOWEST_CONTRAST)
    assert ratio >= 4.5, f"{where}: {ratio}"  # what WCAG calls AA
    page.get_by_role("button", name="Light or dark").click()
    assert dark != (
        page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"
    )
    assert page.evaluate(LOWEST_CONTRAST)[0] >= 4.5
    page.close()


def test_everything_can_be_reached_and_opened_by_the_keyboard(
    browser: object, page_uri: str
) -> None:
    page = browser.new_page()  # type: ignore[attr-defined]
    page.goto(page_uri)
    wanted = page.evaluate("document.querySelectorAll('a, button, summary').length")
    assert wanted > 10
    page.keyboard.press("Tab")
    focused = "document.activeElement"
    assert page.evaluate(f"{focused}.textContent") == "Skip to the content"
    assert page.evaluate(f"{focused}.getBoundingClientRect().left") >= 0
    seen = 1
    for _ in range(wanted - 1):
        page.keyboard.press("Tab")
        seen += page.evaluate(f"{focused}.matches('a, button, summary')")
        assert page.evaluate(f"getComputedStyle({focused}).outlineStyle") != "none"
        if page.evaluate(f"{focused}.matches('summary') && !{focused}.parentElement.open"):
            page.keyboard.press("Enter")
            assert page.evaluate(f"{focused}.parentElement.open")
            page.keyboard.press("Enter")
    assert seen == wanted
    page.close()
