"""``tokpipe completion``: print what makes a shell complete verbs and options."""

from __future__ import annotations

import argparse

import shtab

from tokpipe.cli.verb import Verb


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)


def _command(parsed: argparse.Namespace) -> int:
    from tokpipe.cli.command import make_parser  # which has this verb

    print(shtab.complete(make_parser(), parsed.shell))
    return 0


VERB = Verb(
    "completion",
    summary="print what makes a shell complete verbs and options",
    description="Print a script that makes a shell complete the verbs and options of tokpipe.",
    example="tokpipe completion bash > ~/.local/share/bash-completion/completions/tokpipe",
    add_arguments=_add_arguments,
    command=_command,
)
