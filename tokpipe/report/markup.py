"""HTML and SVG elements. Text is escaped, and secrets in it are masked."""

from html import escape

from tokpipe.telemetry.redact import redact

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
