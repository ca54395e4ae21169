"""The page around the sections: one file with its style in it, which fetches nothing."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from tokpipe.report import sections
from tokpipe.report.facts import Facts
from tokpipe.report.markup import Markup, el, joined
from tokpipe.report.parts import moment

_CONTENTS = {
    "throughput": "Throughput",
    "rejected": "Rejected",
    "codes": "Codes",
    "lengths": "Lengths",
    "pairs": "Pictures",
    "provenance": "Provenance",
}


def page(facts: Facts) -> str:
    """Return the report as HTML.

    Whatever the output says is escaped. Should that fail, the policy in the head lets a browser run
    nothing but the script, and apply nothing but the style, that belong here, and fetch nothing.
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
        el("meta", name="generator", content=f"tokpipe {facts.made_by}"),
        el("title", f"{facts.record.dataset}: tokpipe report"),
        el("style", style),
    )
    body = el(
        "body",
        el("a", "Skip to the report", href="#report", class_="skip"),
        el("header", _masthead(facts)),
        el(
            "main",
            sections.headline(facts),
            sections.throughput(facts),
            sections.rejected(facts),
            sections.codes(facts),
            sections.lengths(facts),
            sections.pictures(facts),
            sections.provenance(facts),
            id="report",
            tabindex=-1,
        ),
        el("footer", el("p", f"Made by tokpipe {facts.made_by} at {moment(facts.made_at)}.")),
        el("script", script),
    )
    return f"<!DOCTYPE html>\n{el('html', head, body, lang='en')}\n"


def _masthead(facts: Facts) -> Markup:
    links = (
        el("li", el("a", title, href=f"#{name}"))
        for name, title in _CONTENTS.items()
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
        sections.state_line(facts),
        el("nav", el("ul", *links), aria_label="Sections"),
    )


def _hash(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
