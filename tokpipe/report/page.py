"""The HTML page around the sections. The style is inline, so it fetches nothing."""

import base64
import hashlib
from collections.abc import Callable
from importlib.resources import files

import tokpipe
from tokpipe.report.facts import Facts
from tokpipe.report.markup import Markup, html, moment
from tokpipe.report.sections.job import headline, provenance, rejected, state_line
from tokpipe.report.sections.sample import codes, lengths, pictures
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

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">\
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
style-src '{4}'; base-uri 'none'; form-action 'none'">\
<meta name="viewport" content="width=device-width, initial-scale=1">\
<meta name="color-scheme" content="light dark"><meta name="generator" content="tokpipe {0}">\
<title>{1}: tokpipe report</title><style>{3}</style></head>\
<body><a href="#report" class="skip">Skip to the report</a>\
<header><p class="kicker">tokpipe report</p><h1>{1}</h1><p class="uri">{2}</p>{5}\
<nav aria-label="Sections"><ul>{7}</ul></nav></header>\
<main id="report" tabindex="-1">{6}{8}</main>\
<footer><p>Made by tokpipe {0} at {9}.</p></footer></body></html>
"""
_SECTION = '<section id="{0}" aria-labelledby="{0}-title"><h2 id="{0}-title">{1}</h2>{2}</section>'


def page(facts: Facts) -> str:
    """Return the report as HTML.

    All text from the output is escaped. In case that fails, a content security policy allows only
    this page's style: no script, and no requests.
    """
    style = Markup(files("tokpipe.report").joinpath("style.css").read_text("utf-8"))
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    contents = {name: content(facts) for name, (_, content) in _SECTIONS.items()}
    shown = {name: content for name, content in contents.items() if content}
    return html(
        _PAGE,
        *(tokpipe.__version__, facts.record.dataset, facts.status.uri),
        *(style, f"sha256-{digest}", state_line(facts), headline(facts)),
        [html('<li><a href="#{}">{}</a></li>', name, _SECTIONS[name][0]) for name in shown],
        [html(_SECTION, name, _SECTIONS[name][0], content) for name, content in shown.items()],
        moment(facts.made_at),
    )
