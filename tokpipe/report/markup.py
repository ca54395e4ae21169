"""HTML and SVG elements, and what several sections build from them.

Text is escaped, and secrets in it are masked.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape

from tokpipe.telemetry.redact import redact

UNKNOWN = "-"
"""Shown in place of a number that is not known."""
_VOID = frozenset({"img", "meta"})


class Markup(str):
    """Text that is already markup. All other text is escaped when an element is built."""

    __slots__ = ()


def el(tag: str, *children: str, **attributes: str | float | bool | None) -> Markup:
    """Return one element. ``class_`` becomes the attribute class, ``aria_label`` aria-label.

    None and False omit an attribute; True adds it without a value. Floats are rounded to three
    decimals.
    """
    start = f"<{tag}{''.join(_attribute(name, value) for name, value in attributes.items())}>"
    return Markup(start if tag in _VOID else f"{start}{joined(*children)}</{tag}>")


def joined(*parts: str) -> Markup:
    """Concatenate parts, escaping those that are not markup."""
    return Markup("".join(part if isinstance(part, Markup) else _safe(part) for part in parts))


def figure(title: str, chart: Markup, note: str, *below: str) -> Markup:
    """Return a chart with its title, a note on how to read it, and what follows below."""
    caption = el("figcaption", el("strong", title), el("span", note, class_="note"))
    return el("figure", caption, chart, *below)


def table(
    caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, is_numeric: bool = True
) -> Markup:
    """Return a table that scrolls on narrow screens.

    The first column holds row headers. ``is_numeric``: the other columns hold numbers.
    """
    kind = "num" if is_numeric else None

    def cells(tag: str, row: Sequence[str]) -> list[Markup]:
        scope = "col" if tag == "th" else "row"
        first = el("th", row[0], scope=scope)
        others = {"class_": kind, "scope": scope if tag == "th" else None}
        return [first, *(el(tag, cell, **others) for cell in row[1:])]

    return el(
        "div",
        el(
            "table",
            el("caption", caption, class_="unseen"),
            el("thead", el("tr", *cells("th", columns))),
            el("tbody", *(el("tr", *cells("td", row)) for row in rows)),
        ),
        class_="scroll",
        tabindex=0,
        role="region",
        aria_label=caption,
    )


def details(summary: str, *content: str, is_open: bool = False) -> Markup:
    """Return content that a click on ``summary`` shows or hides."""
    return el("details", el("summary", summary), *content, open=is_open)


def notice(*content: str) -> Markup:
    return el("p", *content, class_="notice")


def tiles(values: Iterable[tuple[str, str, str]]) -> Markup:
    """Return the key figures: (name, value, explanation) of each."""
    return el(
        "dl",
        *(
            el("div", el("dt", name), el("dd", el("b", value), el("span", more)))
            for name, value, more in values
        ),
        class_="tiles",
    )


def moment(time: str) -> str:
    """Return an ISO 8601 time for people, in UTC."""
    return f"{datetime.fromisoformat(time).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def short(number: float, *, exact_below: float = 1e7) -> str:
    """Return ``9,876,543`` below ``exact_below``, and ``12.35 M`` or ``4.6 B`` from there on."""
    if number < exact_below:
        return f"{number:,.10g}"
    sizes = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
    size, unit = next(one for one in sizes if number >= one[0])
    return f"{number / size:,.4g} {unit}"


def _safe(text: str) -> str:
    # An output may have been written by a version that recognized fewer secrets.
    return escape(redact(text))


def _attribute(name: str, value: str | float | bool | None) -> str:
    name = name.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    if value is True:
        return f" {name}"
    if isinstance(value, float):
        value = f"{value:.3f}".rstrip("0").rstrip(".")
    return f' {name}="{joined(str(value) if not isinstance(value, Markup) else value)}"'
