"""All verbs in one parser."""

import argparse
from collections.abc import Sequence
from typing import Protocol

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
    submit,
)
from tokpipe.cli.output import exit_code_of


class Verb(Protocol):
    """A module for one word after ``tokpipe``. Its docstring is the help text, and the first
    sentence of that is the summary in the list of verbs."""

    __name__: str
    EXAMPLE: str

    def add_arguments(self, parser: argparse.ArgumentParser, /) -> None: ...

    def run(self, parsed: argparse.Namespace, /) -> int:
        """Return the exit code."""


VERBS: tuple[Verb, ...] = (
    check, plan, run, submit, status, inspect, decode, rejected, report, audit, clean, export,
    convert, completion,
)  # fmt: skip
"""In the order of the help text, which follows a job's life."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ``tokpipe`` command and return its exit code."""
    parsed = make_parser().parse_args(arguments)
    return exit_code_of(parsed.run, parsed)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs.

    It sets ``run`` to the verb's function, and ``parser`` to itself, for ``completion``.
    """
    parser = argparse.ArgumentParser(
        prog="tokpipe", description="Pre-tokenize video datasets into discrete codes."
    )
    parser.add_argument("--version", action="version", version=f"tokpipe {tokpipe.__version__}")
    parser.set_defaults(parser=parser)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in VERBS:
        summary, _, _ = (verb.__doc__ or "").partition(".")
        its_parser = verbs.add_parser(
            verb.__name__.rpartition(".")[2],
            help=summary[:1].lower() + summary[1:],
            description=verb.__doc__,
            epilog=f"example: {verb.EXAMPLE}",
        )
        verb.add_arguments(its_parser)
        its_parser.set_defaults(run=verb.run)
    return parser
