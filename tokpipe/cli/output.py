"""How verbs print: for people or for programs, and never a secret."""

import argparse
import errno
import sys
import traceback
from collections.abc import Iterable
from typing import Any, Protocol

import yaml
from rich.console import Console

from tokpipe.errors import ConfigError, TokpipeError
from tokpipe.runtime.console import say
from tokpipe.telemetry.human import json_line

_EXTRAS = {
    **dict.fromkeys(("av", "ray", "safetensors", "torch"), "run"),
    **dict.fromkeys(("botocore", "s3fs"), "s3"),
    "transformers": "emu3",
}
"""The extra of tokpipe that installs each package."""
_PATH_ERRNOS = {
    *(errno.EACCES, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT),
    *(errno.ENOSPC, errno.ENOTDIR, errno.ENOTEMPTY, errno.EPERM, errno.EROFS, errno.EDQUOT),
}
"""What is wrong with a path or its disk, rather than with tokpipe."""


class ReaderGone(BaseException):
    """What reads the output has closed it, as ``head`` does."""


class Printable(Protocol):
    """What a verb has found or done: as lines for people, or as a value for JSON."""

    def to_dict(self) -> dict[str, Any]: ...
    def lines(self) -> Iterable[str]: ...


Result = Printable | Iterable[str] | int
"""What a verb returns: what to print (a dict as YAML), or its exit code if that may not be 0."""


def shown(result: Printable | Iterable[str], parsed: argparse.Namespace) -> Iterable[str]:
    if isinstance(result, dict):
        text = yaml.safe_dump(result, sort_keys=False, default_flow_style=None, width=100)
        return [json_line(result)] if parsed.json else text.splitlines()
    if isinstance(result, Iterable):
        return result
    return [json_line(result.to_dict())] if parsed.json else result.lines()


def print_lines(
    lines: Iterable[str], console: Console | None = None, style: str = "", keep: str = ""
) -> None:
    """Print lines as they come."""
    console = console or Console(highlight=False)
    for line in lines:
        try:
            say(console, line, style, keep)
        except (BrokenPipeError, SystemExit) as error:  # newer versions of rich exit
            raise ReaderGone from error


def exit_code_of(parsed: argparse.Namespace) -> int:
    """Run a verb, print its result or error, and return its exit code."""
    try:
        result: Result = parsed.run(parsed)
        if isinstance(result, int):
            return result
        print_lines(shown(result, parsed))
        return 0
    except TokpipeError as error:
        text, code = f"{type(error).__name__}: {error}", error.exit_code
    except Exception as error:
        text, code = _explained(error), ConfigError.exit_code
        if not text:  # a bug
            text, code = traceback.format_exc().rstrip(), 1
    print_lines([text], Console(stderr=True), "red", keep="\n" if code == 1 else "")
    return code


def _explained(error: Exception) -> str:
    """Explain what is no bug, but a wrong path or a missing package; empty for anything else."""
    if isinstance(error, ImportError):
        package = (error.name or "tokpipe").partition(".")[0]
        if package == "tokpipe" or package in sys.stdlib_module_names:
            return ""
        if not isinstance(error, ModuleNotFoundError):
            return f"The package {package} is installed, but does not load: {error}. Reinstall it"
        extra = _EXTRAS.get(package)
        wanted = f"'tokpipe[{extra}]'" if extra else package
        return f"This needs the package {package}, which is not installed: pip install {wanted}"
    if isinstance(error, OSError) and error.errno in _PATH_ERRNOS:
        named = error.filename if error.filename2 is None else error.filename2
        named = named or "standard output"
        return f"{named}: {error.strerror}. Choose another path, or correct this one"
    return ""
