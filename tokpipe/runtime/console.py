"""The one way to print for people: text of any origin, as it is."""

from typing import Any

from rich.console import Console
from rich.text import Text

from tokpipe.telemetry.redact import printable


def say(console: Console, text: str, style: str = "", **how: Any) -> None:
    """Print one line: no secret, markup, emoji code, control, or line break of the text's own."""
    console.print(Text(printable(text), style), **{"soft_wrap": True, **how})
