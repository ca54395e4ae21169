"""Print a script for shell completion of verbs and options."""

import argparse

import shtab

from tokpipe.cli.arguments import Parser
from tokpipe.cli.output import ReaderGone

EXAMPLE = "source <(tokpipe completion bash)"


def add_arguments(parser: Parser) -> None:
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)


def run(parsed: argparse.Namespace) -> int:
    try:
        print(shtab.complete(parsed.parser, parsed.shell), flush=True)
    except BrokenPipeError as error:
        raise ReaderGone from error
    return 0
