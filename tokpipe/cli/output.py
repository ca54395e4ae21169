"""How verbs print: for people or for programs, and never a secret."""

import argparse
import json
import signal
import traceback
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from rich.console import Console

from tokpipe.errors import TokpipeError
from tokpipe.telemetry.redact import redact


class Printable(Protocol):
    """What a verb has found or done."""

    def to_json(self) -> str: ...
    def lines(self) -> Iterable[str]: ...


def show(result: Printable, *, as_json: bool) -> None:
    """Print a result: as lines for people, or as one line of JSON."""
    print_lines([result.to_json()] if as_json else result.lines())


def print_json(value: Any) -> None:
    print_lines([json.dumps(value)])


def print_lines(lines: Iterable[str], console: Console | None = None) -> None:
    """Print lines as they come, with secrets masked."""
    console = console or Console(highlight=False)
    for line in lines:
        console.print(redact(line), markup=False, soft_wrap=True)


def exit_code_of(command: Callable[[argparse.Namespace], int], parsed: argparse.Namespace) -> int:
    """Run a command; if it raises, print the error and return its exit code."""
    try:
        return command(parsed)
    except TokpipeError as error:
        _print_error(f"{type(error).__name__}: {error}")
        return error.exit_code
    except KeyboardInterrupt as error:  # ``Signals`` raises it with the signal's number
        _print_error("interrupted; what was committed is kept. Run the same command to continue")
        return 128 + int(next(iter(error.args), signal.SIGINT))
    except Exception:  # a bug; the traceback may quote URIs and arguments, so it is redacted
        _print_error(traceback.format_exc().rstrip())
        return 1


def _print_error(text: str) -> None:
    Console(stderr=True).print(redact(text), style="red", markup=False, soft_wrap=True)
