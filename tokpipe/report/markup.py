"""HTML and SVG from templates, and what several sections build from them."""

from collections.abc import Iterable, Sequence
from html import escape
from string import Formatter
from typing import Any

from tokpipe.formats.checks import utc_time
from tokpipe.telemetry.redact import printable

UNKNOWN = "-"  # Shown in place of a number that is not known


class Markup(str):
    """Text that is already markup. All other text is escaped when it is filled in."""

    __slots__ = ()


class _Filler(Formatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, Markup):
            return value
        if isinstance(value, str | int | float):
            # An output may have been written by a version that recognized fewer secrets.
            return escape(printable(format(value, format_spec), keep="\n"))
        return "".join(self.format_field(one, format_spec) for one in value)


def html(template: str, *values: object) -> Markup:
    """Fill a template as ``str.format`` does: text is escaped, and secrets in it are masked.

    Lists are joined.
    """
    return Markup(_Filler().vformat(template, values, {}))


def figure(title: str, chart: Markup, note: str, *below: Markup) -> Markup:
    """Return a chart with its title, a note on how to read it, and what follows below."""
    caption = '<figcaption><strong>{}</strong><span class="note">{}</span></figcaption>'
    return html(f"<figure>{caption}{{}}{{}}</figure>", title, note, chart, below)


def table(
    caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, is_numeric: bool = True
) -> Markup:
    """Return a table that scrolls on narrow screens.

    The first column holds row headers. ``is_numeric``: the other columns hold numbers.
    """
    kind = ' class="num"' if is_numeric else ""
    head = [html(f'<th{kind} scope="col">{{}}</th>', column) for column in columns[1:]]
    body = (
        html(
            '<tr><th scope="row">{}</th>{}</tr>',
            row[0],
            [html(f"<td{kind}>{{}}</td>", cell) for cell in row[1:]],
        )
        for row in rows
    )
    return html(
        '<div class="scroll" tabindex="0" role="region" aria-label="{0}"><table>'
        '<caption class="unseen">{0}</caption><thead><tr><th scope="col">{1}</th>{2}</tr></thead>'
        "<tbody>{3}</tbody></table></div>",
        *(caption, columns[0], head, body),
    )


def details(summary: str, *content: Markup, is_open: bool = False) -> Markup:
    """Return content that a click on ``summary`` shows or hides."""
    start = "<details open>" if is_open else "<details>"
    return html(start + "<summary>{}</summary>{}</details>", summary, content)


def notice(*content: str) -> Markup:
    return html('<p class="notice">{}</p>', content)


def tiles(values: Iterable[tuple[str, str, str]]) -> Markup:
    """Return the key figures: (name, value, explanation) of each."""
    tile = "<div><dt>{}</dt><dd><b>{}</b><span>{}</span></dd></div>"
    return html('<dl class="tiles">{}</dl>', [html(tile, *value) for value in values])


def moment(time: str) -> str:
    """Return an ISO 8601 time for people, in UTC."""
    return f"{utc_time(time):%Y-%m-%d %H:%M:%S} UTC"


def short(number: float, *, exact_below: float = 1e7) -> str:
    """Return ``9,876,543`` below ``exact_below``, and ``12.35 M`` or ``4.6 B`` from there on."""
    if number < exact_below:
        return f"{number:,.10g}"
    sizes = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
    size, unit = next(one for one in sizes if number >= one[0])
    return f"{number / size:,.4g} {unit}"
