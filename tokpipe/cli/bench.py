"""``tokpipe bench``: measure how near this machine comes to what it can do."""

from __future__ import annotations

import argparse
from pathlib import Path

from tokpipe.cli.telling import print_lines
from tokpipe.cli.verb import Verb


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="which; all when left out")
    parser.add_argument("--list", action="store_true", help="say which there are, run none")
    parser.add_argument(
        "--quick", action="store_true", help="smaller and shorter: it works, no figure to quote"
    )
    parser.add_argument("--json", type=Path, metavar="FOLDER", help="keep FOLDER/NAME.json of each")


def _command(parsed: argparse.Namespace) -> int:
    from tokpipe.bench.catalogue import BENCHMARKS
    from tokpipe.bench.command import run_benchmarks

    if parsed.list:
        print_lines(f"{name}: {measures}" for name, measures in BENCHMARKS.items())
        return 0
    run_benchmarks(
        parsed.names,
        quick=parsed.quick,
        folder=parsed.json,
        say=lambda line: print_lines([line]),
    )
    return 0


VERB = Verb(
    "bench",
    summary="measure how near this machine comes to what it can do",
    description="Run benchmarks: each figure beside its limit or its target, in the same run.",
    example="tokpipe bench encoder storage --json results",
    add_arguments=_add_arguments,
    command=_command,
)
