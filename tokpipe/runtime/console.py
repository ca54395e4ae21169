"""The one way to print for people."""

from rich.console import Console
from rich.text import Text

from tokpipe.telemetry.redact import printable


def say(console: Console, text: str, style: str = "", keep: str = "") -> None:
    """Print text of any origin in one line; nothing in it is markup or moves the cursor."""
    console.print(Text(printable(text, keep), style), soft_wrap=True)
