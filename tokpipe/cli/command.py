"""All verbs in one parser."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import tokpipe
from tokpipe.cli import (
    audit,
    check,
    clean,
    completion,
    convert,
    decode,
    export,
    inspect,
    plan,
    rejected,
    report,
    run,
    status,
)
from tokpipe.cli.output import exit_code_of
from tokpipe.cli.verb import Verb

VERBS: tuple[Verb, ...] = (
    *(check.VERB, plan.VERB, run.VERB, status.VERB, inspect.VERB, decode.VERB, rejected.VERB),
    *(report.VERB, audit.VERB, clean.VERB, export.VERB, convert.VERB, completion.VERB),
)
"""In the order of the help text, which follows a job's life."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ``tokpipe`` command and return its exit code."""
    parsed = make_parser().parse_args(arguments)
    return exit_code_of(parsed.command, parsed)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs.

    It sets ``command`` to the verb's function, and ``parser`` to itself, for ``completion``.
    """
    parser = argparse.ArgumentParser(
        prog="tokpipe", description="Pre-tokenize video datasets into discrete codes."
    )
    parser.add_argument("--version", action="version", version=f"tokpipe {tokpipe.__version__}")
    parser.set_defaults(parser=parser)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in VERBS:
        its_parser = verbs.add_parser(
            verb.name,
            help=verb.summary,
            description=verb.description,
            epilog=f"example: {verb.example}",
        )
        verb.add_arguments(its_parser)
        its_parser.set_defaults(command=verb.command)
    return parser
