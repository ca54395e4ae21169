"""Print a script that lets a shell complete the verbs and options of tokpipe."""

from __future__ import annotations

import argparse

import shtab

from tokpipe.cli.verb import Verb


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)


def _command(parsed: argparse.Namespace) -> int:
    print(shtab.complete(parsed.parser, parsed.shell))
    return 0


VERB = Verb(
    "completion",
    summary="print a shell completion script",
    description=__doc__,
    example="tokpipe completion bash > ~/.local/share/bash-completion/completions/tokpipe",
    add_arguments=_add_arguments,
    command=_command,
)
