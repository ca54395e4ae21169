"""How verbs tell what they found: to people or to programs, and never with a secret in it."""

from __future__ import annotations

import argparse
import signal
import traceback
from collections.abc import Callable, Iterable
from typing import Protocol

from rich.console import Console

from tokpipe.errors import TokpipeError
from tokpipe.telemetry.redact import redact


class Told(Protocol):
    """What a verb has found or done."""

    def to_json(self) -> str: ...
    def lines(self) -> Iterable[str]: ...


def tell(told: Told, *, as_json: bool) -> None:
    """Print it for people, or on one line for programs."""
    print_lines([told.to_json()] if as_json else told.lines())


def print_lines(lines: Iterable[str], console: Console | None = None) -> None:
    """Print each line as it comes, as it is but for secrets."""
    console = console or Console(highlight=False)
    for line in lines:
        console.print(redact(line), markup=False, soft_wrap=True)


def reporting(command: Callable[[argparse.Namespace], int], parsed: argparse.Namespace) -> int:
    """Run a command; print an error that it ends with, and return the code that stands for it."""
    try:
        return command(parsed)
    except TokpipeError as error:
        _print_error(f"{type(error).__name__}: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted; what is committed stays", style="red")
        return 128 + signal.SIGINT
    except Exception:  # a bug: its traceback may quote URIs, and what libraries were given
        _print_error(traceback.format_exc().rstrip())
        return 1


def _print_error(text: str) -> None:
    Console(stderr=True).print(redact(text), style="red", markup=False, soft_wrap=True)
