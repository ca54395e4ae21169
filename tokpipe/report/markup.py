"""HTML and SVG elements whose text cannot become markup, and shows no secret."""

from __future__ import annotations

from html import escape

from tokpipe.telemetry.redact import redact

_VOID = frozenset({"br", "hr", "img", "link", "meta"})


class Markup(str):
    """Text that is markup already. Every other text is escaped on its way into an element."""

    __slots__ = ()


def el(tag: str, *children: str, **attributes: str | float | bool | None) -> Markup:
    """One element. ``class_`` is the attribute class, and ``aria_label`` is aria-label.

    A None leaves an attribute out, as False does; True gives it no value. Numbers are written
    with three digits behind the point at the most.
    """
    start = f"<{tag}{''.join(_attribute(name, value) for name, value in attributes.items())}>"
    return Markup(start if tag in _VOID else f"{start}{joined(*children)}</{tag}>")


def joined(*parts: str) -> Markup:
    """Parts one after the other; those that are no markup are escaped."""
    return Markup("".join(part if isinstance(part, Markup) else _safe(part) for part in parts))


def _safe(text: str) -> str:
    # What was redacted when it was written is redacted again: later versions know more secrets.
    return escape(redact(text))


def _attribute(name: str, value: str | float | bool | None) -> str:
    name = name.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    if value is True:
        return f" {name}"
    if isinstance(value, float):
        value = f"{value:.3f}".rstrip("0").rstrip(".")
    text = str(value)
    return f' {name}="{text if isinstance(value, Markup) else _safe(text)}"'
