"""The HTML page around the sections. The style is inline, so it fetches nothing."""

import base64
import hashlib
from collections.abc import Callable, Iterable
from importlib.resources import files

import tokpipe
from tokpipe.report.facts import Facts
from tokpipe.report.markup import Markup, el, joined, moment
from tokpipe.report.sections.headline import headline, state_line
from tokpipe.report.sections.pictures import pictures
from tokpipe.report.sections.provenance import provenance
from tokpipe.report.sections.rejected import rejected
from tokpipe.report.sections.sample import codes, lengths
from tokpipe.report.sections.throughput import throughput

_SECTIONS: dict[str, tuple[str, Callable[[Facts], list[Markup]]]] = {
    "throughput": ("Throughput", throughput),
    "rejected": ("Rejected clips", rejected),
    "codes": ("Code usage", codes),
    "lengths": ("Clip lengths", lengths),
    "pairs": ("Source and reconstruction", pictures),
    "provenance": ("Provenance", provenance),
}
"""Title and content by anchor. A section without content is left out."""


def page(facts: Facts) -> str:
    """Return the report as HTML.

    All text from the output is escaped. In case that fails, a content security policy allows only
    this page's style: no script, and no requests.
    """
    style = Markup(files("tokpipe.report").joinpath("style.css").read_text("utf-8"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; base-uri 'none'; "
        "form-action 'none'"
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
    contents = {name: content(facts) for name, (_, content) in _SECTIONS.items()}
    shown = {name: content for name, content in contents.items() if content}
    sections = map(_section, shown, shown.values())
    body = el(
        "body",
        el("a", "Skip to the report", href="#report", class_="skip"),
        el("header", _masthead(facts, shown)),
        el("main", headline(facts), *sections, id="report", tabindex=-1),
        el("footer", el("p", f"Made by tokpipe {tokpipe.__version__} at {moment(facts.made_at)}.")),
    )
    return f"<!DOCTYPE html>\n{el('html', head, body, lang='en')}\n"


def _masthead(facts: Facts, shown: Iterable[str]) -> Markup:
    links = (el("li", el("a", _SECTIONS[name][0], href=f"#{name}")) for name in shown)
    return joined(
        el("p", "tokpipe report", class_="kicker"),
        el("h1", facts.record.dataset),
        el("p", facts.status.uri, class_="uri"),
        state_line(facts),
        el("nav", el("ul", *links), aria_label="Sections"),
    )


def _section(name: str, content: Iterable[Markup]) -> Markup:
    heading = f"{name}-title"
    title = el("h2", _SECTIONS[name][0], id=heading)
    return el("section", title, *content, id=name, aria_labelledby=heading)


def _hash(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
