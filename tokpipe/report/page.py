"""The HTML page around the sections. Style and script are inline, so it fetches nothing."""

import base64
import hashlib
from collections.abc import Callable
from importlib.resources import files

import tokpipe
from tokpipe.report.facts import Facts
from tokpipe.report.markup import Markup, el, joined
from tokpipe.report.parts import moment
from tokpipe.report.sections.headline import headline, state_line
from tokpipe.report.sections.pictures import pictures
from tokpipe.report.sections.provenance import provenance
from tokpipe.report.sections.rejected import rejected
from tokpipe.report.sections.sample import codes, lengths
from tokpipe.report.sections.throughput import throughput

_SECTIONS: dict[str, tuple[str, Callable[[Facts], Markup]]] = {
    "throughput": ("Throughput", throughput),
    "rejected": ("Rejected", rejected),
    "codes": ("Codes", codes),
    "lengths": ("Lengths", lengths),
    "pairs": ("Pictures", pictures),
    "provenance": ("Provenance", provenance),
}
"""Title in the table of contents, and content, by anchor."""


def page(facts: Facts) -> str:
    """Return the report as HTML.

    All text from the output is escaped. In case that fails, a content security policy allows only
    this page's script and style, and no requests.
    """
    style, script = (
        Markup(files("tokpipe.report").joinpath(name).read_text("utf-8"))
        for name in ("style.css", "theme.js")
    )
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; "
        f"script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'"
    )
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=Markup(policy)),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("meta", name="generator", content=f"tokpipe {tokpipe.__version__}"),
        el("title", f"{facts.record.dataset}: tokpipe report"),
        el("style", style),
    )
    sections = (content(facts) for _, content in _SECTIONS.values())
    body = el(
        "body",
        el("a", "Skip to the report", href="#report", class_="skip"),
        el("header", _masthead(facts)),
        el("main", headline(facts), *sections, id="report", tabindex=-1),
        el("footer", el("p", f"Made by tokpipe {tokpipe.__version__} at {moment(facts.made_at)}.")),
        el("script", script),
    )
    return f"<!DOCTYPE html>\n{el('html', head, body, lang='en')}\n"


def _masthead(facts: Facts) -> Markup:
    links = (
        el("li", el("a", title, href=f"#{name}"))
        for name, (title, _) in _SECTIONS.items()
        if name != "pairs" or facts.pairs is not None
    )
    return joined(
        el(
            "div",
            el("p", "tokpipe report", class_="kicker"),
            el("button", "Theme", type="button", id="theme", hidden=True),
            class_="top",
        ),
        el("h1", facts.record.dataset),
        el("p", facts.status.uri, class_="uri"),
        state_line(facts),
        el("nav", el("ul", *links), aria_label="Sections"),
    )


def _hash(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
