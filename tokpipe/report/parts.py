"""Pieces that several sections of a report are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from tokpipe.report.markup import Markup, el, joined

UNKNOWN = "-"
"""Stands where a number would."""


def section(name: str, title: str, *content: str) -> Markup:
    """A part of the page that the table of contents leads to."""
    return el(
        "section",
        el("h2", title, id=f"{name}-title"),
        *content,
        id=name,
        aria_labelledby=f"{name}-title",
    )


def figure(title: str, chart: Markup, note: str = "", *below: str) -> Markup:
    """A chart under its name, with what to know of it."""
    about = [el("span", note, class_="note")] if note else []
    return el("figure", el("figcaption", el("strong", title), *about), chart, *below)


def table(
    caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers_from: int = 1
) -> Markup:
    """A table that scrolls on narrow screens; columns from ``numbers_from`` on hold numbers."""

    def cells(tag: str, row: Sequence[str]) -> Markup:
        return joined(
            *(
                el(
                    "th" if tag == "td" and place == 0 else tag,
                    cell,
                    class_="num" if place >= numbers_from else None,
                    scope="col" if tag == "th" else "row" if place == 0 else None,
                )
                for place, cell in enumerate(row)
            )
        )

    body = [el("tr", cells("td", row)) for row in rows]
    return el(
        "div",
        el(
            "table",
            el("caption", caption, class_="unseen"),
            el("thead", el("tr", cells("th", columns))),
            el("tbody", *body),
        ),
        class_="scroll",
        tabindex=0,
        role="region",
        aria_label=caption,
    )


def details(summary: str, *content: str, is_open: bool = False) -> Markup:
    """Content that is shown when it is asked for."""
    return el("details", el("summary", summary), *content, open=is_open)


def notice(*content: str) -> Markup:
    """Something that the reader should not miss."""
    return el("p", *content, class_="notice")


def legend(entries: Iterable[tuple[str, str]]) -> Markup:
    """What the colours of a chart stand for: (class, text) of each."""
    return el(
        "ul",
        *(
            el("li", el("span", class_=f"swatch {kind}", aria_hidden="true"), text)
            for kind, text in entries
        ),
        class_="legend",
    )


def definitions(pairs: Iterable[tuple[str, str]]) -> Markup:
    """Names and what they stand for."""
    return el("dl", *(el("div", el("dt", name), el("dd", value)) for name, value in pairs))


def tiles(values: Iterable[tuple[str, str, str]]) -> Markup:
    """Numbers to know: what each is, its value, and what to know of it."""
    return el(
        "dl",
        *(
            el("div", el("dt", name), el("dd", el("b", value), el("span", more)))
            for name, value, more in values
        ),
        class_="tiles",
    )


def counted(number: int, one: str, more: str | None = None) -> str:
    """``1 shard``, ``2 shards``."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def moment(time: str) -> str:
    """A time in ISO 8601 as people read it, in UTC."""
    return f"{datetime.fromisoformat(time).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def short(number: float) -> str:
    """``9,876,543`` as it is; more as ``12.3 M`` or ``4.6 B``."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= 10 * size or (number >= size and unit != "M"):
            return f"{number / size:,.1f} {unit}"
    return f"{number:,.0f}"
