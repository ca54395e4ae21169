"""The one way to print for people."""

import shutil

from rich.console import Console
from rich.text import Text

from tokpipe.telemetry.redact import printable


def say(console: Console, text: str, style: str = "", keep: str = "") -> None:
    """Print any text in one line, wrapped on a narrow terminal: no markup, no cursor movements."""
    columns = shutil.get_terminal_size().columns  # rich takes a dumb terminal to have 80
    narrow = columns if console.is_terminal and columns < 80 else None
    console.print(Text(printable(text, keep), style), soft_wrap=not narrow, width=narrow)
